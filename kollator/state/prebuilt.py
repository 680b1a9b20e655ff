"""Which prebuilt cr-sqlite belongs to a platform, and under which name it lies in ``lib/``.

The standard library only: the build step in ``setup.py`` loads this file too, before anything is installed.
"""

from __future__ import annotations

import platform
import sys
import sysconfig
from typing import NamedTuple


class Prebuilt(NamedTuple):
    """A package of the npm registry that carries the extension."""

    package: str
    """Name and exact version, as npm takes it."""
    integrity: str
    """sha512 of the package's tarball in base64, as npm writes it."""
    member: str
    """The library inside the tarball."""


PREBUILT = {
    "linux-x64": Prebuilt(
        "@shards-lang/crsqlite-linux-x64@0.1.0",
        "sha512-ErdnfWnXhxeRVAveV+KaK1fGcvR7qvg/m4mCUn2+GUsXz0uEUKb2ZHy6J/V6v13RriWYPuH12Flsb3+T0umOLw==",
        "package/crsqlite.so",
    ),
    "darwin-arm64": Prebuilt(
        "@shards-lang/crsqlite-darwin-arm64@0.1.0",
        "sha512-NdMTCDCEJArAL2kd+/v6hyaPMHxlZRxPkpymyq/CsFSpbmr4tbiVfo1WUuRUDk2qAIglWMBFkeZeZMnwuT4hYA==",
        "package/crsqlite.dylib",
    ),
}
"""Every platform that has one."""

_CPU = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


def platform_name(system: str, machine: str, host: str = "", bits: int = 64) -> str:
    """Npm's name for a platform, such as ``linux-x64``.

    ``system`` and ``machine`` are as ``platform`` gives them, ``host`` is the GNU triplet Python was built
    for, ``bits`` the size of its pointers. The prebuilt libraries need glibc and 64 bits, so a musl system
    and a 32-bit Python get a name of their own, which has no prebuilt library.
    """
    cpu = _CPU.get(machine.lower(), machine.lower() or "unknown")
    name = f"{system.lower() or 'unknown'}-{cpu}"
    if "musl" in host:
        name += "-musl"
    return name if bits == 64 else f"{name}-{bits}bit"


def this_platform() -> str:
    """The name of the platform this Python runs on."""
    host = str(sysconfig.get_config_var("HOST_GNU_TYPE") or "")
    return platform_name(platform.system(), platform.machine(), host, 64 if sys.maxsize > 2**32 else 32)


def library_name(name: str) -> str:
    """The file in ``lib/`` for a platform. It tells the platform, so one for another is never taken for
    it.
    """
    return f"crsqlite-{name}.{'dylib' if name.startswith('darwin') else 'so'}"
