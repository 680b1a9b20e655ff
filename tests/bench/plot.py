"""An SVG of the figures, by itself: bars for the servers, lines for growth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 420, 250
"""Of one panel, in pixels."""
COLUMNS = 2
LEFT, RIGHT, TOP, BOTTOM = 110, 50, 34, 40
OWN, OTHER, SECOND = "#0b6e4f", "#8fa6b2", "#c2571a"


def short(value: float) -> str:
    """A number as a person reads it: 12.3k, 4.56."""
    if value == 0:
        return "0"
    if abs(value) >= 999_500:
        return f"{value / 1e6:.2f}M"
    if abs(value) >= 9_999.5:
        return f"{value / 1e3:.1f}k"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _text(x: float, y: float, what: str, *, anchor: str = "start", size: int = 11, weight: str = "normal") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
            f' fill="#222">{escape(what)}</text>')


def bars(title: str, values: Mapping[str, float], own: str) -> str:
    """One panel: a bar for each server, with ``own`` in a colour of its own."""
    parts = [_text(8, 20, title, size=13, weight="bold")]
    top = max([*values.values(), 0.0]) or 1.0
    row = (HEIGHT - TOP - 14) / max(1, len(values))
    for place, (name, value) in enumerate(values.items()):
        y = TOP + place * row
        wide = max(0.0, value) / top * (WIDTH - LEFT - RIGHT)
        colour = OWN if name == own else OTHER
        parts.append(f'<rect x="{LEFT}" y="{y:.1f}" width="{wide:.1f}" height="{row * 0.7:.1f}" fill="{colour}"/>')
        parts.append(_text(LEFT - 6, y + row * 0.5, name, anchor="end"))
        parts.append(_text(LEFT + wide + 4, y + row * 0.5, short(value)))
    return "\n".join(parts)


def lines(title: str, across: Sequence[float], curves: Mapping[str, Sequence[float]], unit: str) -> str:
    """One panel: values over a logarithmic axis, from zero. ``unit`` is what ``across`` counts."""
    parts = [_text(8, 20, title, size=13, weight="bold")]
    if not across:
        return "\n".join([*parts, _text(LEFT, HEIGHT / 2, "not measured")])
    low, high = math.log10(min(across)), math.log10(max(across))
    top = max([value for curve in curves.values() for value in curve] + [0.0]) * 1.1 or 1.0
    wide, tall, left = WIDTH - 60 - 40, HEIGHT - TOP - BOTTOM, 60

    def x_of(value: float) -> float:
        return left + (math.log10(value) - low) / ((high - low) or 1.0) * wide

    def y_of(value: float) -> float:
        return TOP + tall - value / top * tall

    for share in (0.0, 0.5, 1.0):
        y = y_of(top * share)
        parts.append(f'<line x1="{left}" x2="{left + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(left - 6, y + 4, short(top * share), anchor="end"))
    for value in across:
        parts.append(_text(x_of(value), HEIGHT - BOTTOM + 16, short(value), anchor="middle"))
    parts.append(_text(left + wide / 2, HEIGHT - BOTTOM + 32, unit, anchor="middle"))
    for place, (name, curve) in enumerate(curves.items()):
        colour = (OWN, SECOND, OTHER)[place % 3]
        points = " ".join(f"{x_of(at):.1f},{y_of(value):.1f}" for at, value in zip(across, curve, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x_of(at):.1f}" cy="{y_of(value):.1f}" r="3" fill="{colour}"/>'
                  for at, value in zip(across, curve, strict=True)]
        if len(curves) > 1:
            parts.append(f'<rect x="{left + 8 + 90 * place}" y="{TOP - 8}" width="10" height="4" fill="{colour}"/>')
            parts.append(_text(left + 22 + 90 * place, TOP - 2, name))
    return "\n".join(parts)


def page(panels: Sequence[str], heading: str, foot: str) -> str:
    """All panels as one SVG document."""
    rows = math.ceil(len(panels) / COLUMNS)
    wide, tall = COLUMNS * WIDTH, rows * HEIGHT + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{tall}" viewBox="0 0 {wide} {tall}"'
        ' font-family="sans-serif">',
        f'<rect width="{wide}" height="{tall}" fill="#fff"/>',
        _text(8, 22, heading, size=15, weight="bold"),
        _text(8, tall - 10, foot, size=10),
    ]
    for place, panel in enumerate(panels):
        x, y = place % COLUMNS * WIDTH, 34 + place // COLUMNS * HEIGHT
        parts.append(f'<g transform="translate({x},{y})">\n{panel}\n</g>')
    return "\n".join([*parts, "</svg>", ""])
