"""Python's side of the load generator: runs it pinned to its core, bounded in time, and reads what it tells."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.bench.machine import CannotRun, generator_core, pinned
from tests.bench.servers import Server
from tests.e2e.processes import WORKER_KEY

OPEN_LIMIT_S = 60.0
"""How long the opening of connections may take."""
SLACK_S = 15.0
"""Over that and the time of the measurement, before the generator is killed."""
HOLD_S = 900.0

Told = dict[str, Any]


class Generator:
    """The built load generator. ``key`` is what its workers register with."""

    def __init__(self, binary: Path, key: str = WORKER_KEY) -> None:
        self._binary = binary
        self._key = key

    @contextlib.contextmanager
    def _started(self, mode: str, server: Server, options: dict[str, object], ports: Sequence[int],
                 pids: Sequence[int], limit_s: float) -> Iterator[subprocess.Popen[str]]:
        command = [str(self._binary), mode, "--key", self._key]
        if server.kind.dialect:
            command += ["--dialect", server.kind.dialect]
        for port in ports or [server.port]:
            command += ["--port", str(port)]
        for pid in pids or server.pids:
            command += ["--pid", str(pid)]
        if server.kind.tls:
            command.append("--tls")
        for name, value in options.items():
            command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        with pinned(generator_core()):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        guard = threading.Timer(limit_s, process.kill)
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert stream is not None
                    stream.close()

    @staticmethod
    def _line(process: subprocess.Popen[str], server: Server) -> Told:
        assert process.stdout is not None
        said = ""
        while True:
            text = process.stdout.readline()
            try:
                told: Told = json.loads(text)
            except ValueError:
                raise CannotRun(f"the generator ended with {text.strip()[:200]!r}; {server.last_words()}") from None
            if told.get("event") != "refused":
                break
            said = f"it said {told['said']!r} in place of a welcome; "
        if "error" in told:
            raise CannotRun(f"{told['error']}; {said}{server.last_words()}")
        return told

    def run(self, mode: str, server: Server, *, seconds: float, ports: Sequence[int] = (), pids: Sequence[int] = (),
            ready: Callable[[], object] | None = None, limit: float = OPEN_LIMIT_S, **options: object) -> Told:
        """One measurement; returns what it tells, with the opening of its connections as ``opening``.

        With ``ready`` the connections are open when it is called, and the measurement begins when it returns.
        Raises ``CannotRun``, and so it does when messages got lost or were answered with errors.
        """
        waits: dict[str, object] = {"wait": True} if ready else {}
        every = {**options, **waits, "seconds": seconds, "limit": limit}
        bound_s = 2 * limit + float(str(options.get("warmup", 0.5))) + seconds + SLACK_S
        opening: Told = {}
        with self._started(mode, server, every, ports, pids, bound_s) as process:
            told = self._line(process, server)
            while "event" in told:
                opening = told
                if ready:
                    ready()
                    assert process.stdin is not None
                    with contextlib.suppress(BrokenPipeError):
                        process.stdin.write("\n")
                        process.stdin.flush()
                told = self._line(process, server)
        if told.get("errors") or told.get("lost") or told.get("missing") or told.get("failures"):
            counts = ", ".join(f"{name} {told[name]}" for name in ("errors", "lost", "missing", "failures")
                               if told.get(name))
            raise CannotRun(f"{mode}: {counts} {told.get('first_error', '')}; {server.last_words()}"[:500])
        return {**told, "opening": opening}

    @contextlib.contextmanager
    def holding(self, server: Server, count: int, *, limit: float = OPEN_LIMIT_S, **options: object) -> Iterator[Told]:
        """So many connections that have joined and do nothing else, while the block runs.

        Yields how the opening went: ``joined``, ``seconds``. Raises ``CannotRun`` when some did not get in, and after
        the block when some got lost.
        """
        every = {**options, "count": count, "seconds": HOLD_S, "limit": limit}
        with self._started("idle", server, every, (), (), HOLD_S + limit + SLACK_S) as process:
            opening = self._line(process, server)
            if opening["joined"] != count:
                raise CannotRun(f"of {count} connections {opening['joined']} got in within {limit:g} s; "
                                f"{server.last_words()}")
            yield opening
            assert process.stdin is not None
            process.stdin.close()
            told = self._line(process, server)
        if told["lost"]:
            raise CannotRun(f"{told['lost']} of {count} idle connections were lost; {server.last_words()}")
