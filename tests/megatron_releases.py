"""Published megatron-core releases, fetched once into ``.tools`` with the package installer.

A test that reads another Megatron names its release here; one that runs it takes the installation,
a folder for PYTHONPATH that holds that Megatron alone and leaves torch to the environment.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

#: Every published minor release that has the hybrid stack. Wheels exist for the Pythons that a
#: release supports; those before 0.17 are only ever read, so that any machine can take one.
READ: Final = ("0.14", "0.15", "0.16", "0.17", "0.18", "0.19")
#: Those that the runtime builds on beside the one in the environment.
RUN: Final = ("0.17", "0.18")

_BEFORE_PYTHON_312: Final = ("0.14", "0.15", "0.16")
_STORE: Final = Path(__file__).resolve().parent.parent / ".tools" / "megatron"


@functools.cache
def wheel(release: str) -> Path:
    """The wheel of the newest patch of ``release`` ("0.18")."""
    folder = _STORE / "wheels" / release
    if not folder.is_dir():
        other_python = []
        if release in _BEFORE_PYTHON_312:
            other_python = ["--python-version", "3.11", "--implementation", "cp"]
            other_python += ["--abi", "cp311", "--platform", "manylinux_2_28_x86_64"]
        with _new(folder) as made:
            _pip("download", *other_python, "--dest", made, f"megatron-core=={release}.*")
    (found,) = folder.glob("*.whl")
    return found


@functools.cache
def installation(release: str) -> Path:
    """A folder for PYTHONPATH with that Megatron in it, byte code compiled, and nothing else."""
    folder = _STORE / "installed" / release
    if not folder.is_dir():
        with _new(folder) as made:
            _pip("install", "--compile", "--target", made, wheel(release))
    return folder


class _new:  # noqa: N801  # used as a context manager
    """Makes a folder as a whole or not at all: a fetch that was broken off must not be found."""

    def __init__(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))

    def __enter__(self) -> Path:
        return self._made

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None:
            self._made.chmod(0o755)
            with contextlib.suppress(OSError):  # another test process was first
                self._made.rename(self._folder)
        shutil.rmtree(self._made, ignore_errors=True)


def _pip(command: str, *arguments: str | Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary", ":all:"),
            *map(str, arguments),
        ],
        check=True,
        # Some environments forbid Python to keep byte code, which is the point of --compile.
        env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
    )
