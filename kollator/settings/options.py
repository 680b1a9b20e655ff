"""The command line of ``twistd kollator-front``, made from the table."""

from __future__ import annotations

from twisted.python import usage

from kollator.settings.table import TABLE, Setting


def _text(row: Setting) -> str:
    if row.flag:
        return f"{row.variable}={row.flag}: {row.help}"
    again = "; repeatable" if row.split else ""
    return f"{row.help} [{row.variable}; default: {row.default_text}{again}]"


class FrontOptions(usage.Options):
    """The options as texts under their long names, for ``Settings.load``, which checks them.

    A repeatable option holds the list of its values, and is absent when it was not given.
    """

    synopsis = "[options]"
    longdesc = (
        "The environment variable in brackets does the same; an option wins over it. The README also lists"
        " the settings that have no option."
    )
    optFlags = [  # noqa: N815, RUF012
        [row.option, None, _text(row)] for row in TABLE if row.flag
    ]
    optParameters = [  # noqa: N815, RUF012
        [row.option, None, None, _text(row)] for row in TABLE if row.option and not (row.flag or row.split)
    ]


def _add_repeatable(row: Setting) -> None:
    def collect(self: FrontOptions, value: str) -> None:
        self.setdefault(row.option, []).append(value)

    collect.__doc__ = _text(row)
    setattr(FrontOptions, "opt_" + row.option.replace("-", "_"), collect)


for _row in TABLE:
    if _row.option and _row.split:
        _add_repeatable(_row)
