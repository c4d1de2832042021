"""Building and loading the C++ of the ``cpu`` backend.

It is built once for each kind of processor, on first use, by torch's own extension loader; or ahead
of time, for an image that has no compiler later::

    python -m megatron_seams_m2rnn.cpu_library

A build happens in a folder of its own, under a lock that the operating system releases when its
holder dies, and its result is moved into place in one step. So a killed build leaves nothing that a
later process could wait for or load.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import filelock
import torch

from megatron_seams.errors import CannotRunHere

if TYPE_CHECKING:
    from megatron_seams_m2rnn.cpu import Call

SOURCE: Final = Path(__file__).parent / "csrc" / "m2rnn.cpp"
_NAME: Final = "megatron_seams_m2rnn_cpu"
#: Seconds to wait for another process that builds, far above the seconds that a build takes.
PATIENCE: Final = 300.0

#: torch's name for what the processor can do -> the compiler's.
_MACHINE: Final = {
    "AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "AVX2": ("-march=x86-64-v3",),
}
_FLAGS: Final = ("-O3", "-std=c++17", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno")


class NotBuilt(Exception):
    """The C++ is not built and cannot be: no compiler, no ninja, no folder to build in."""


class Library:
    """The loaded C++.

    Args:
        path: The shared library.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._functions = ctypes.CDLL(str(path))
        for name in ("m2rnn_lanes", "m2rnn_call_bytes"):
            getattr(self._functions, name).restype = ctypes.c_int64

    def lanes(self, dtype: torch.dtype) -> int:
        """The multiple that the rows of a state are padded to."""
        lanes: int = self._functions.m2rnn_lanes(ctypes.c_int64(dtype.itemsize))
        return lanes

    def call_bytes(self) -> int:
        """The size of ``M2rnnCall``, for a test to hold :class:`Call` to."""
        size: int = self._functions.m2rnn_call_bytes()
        return size

    def run(self, direction: str, dtype: torch.dtype, call: "Call") -> None:
        """Run ``forward`` or ``backward`` in float32 or float64."""
        name = str(dtype).removeprefix("torch.")
        self._function(f"m2rnn_{direction}_{name}")(ctypes.byref(call))

    def _function(self, name: str) -> Any:
        function = getattr(self._functions, name)
        function.restype = None
        return function


@functools.cache
def library() -> Library:
    """The library of this machine, built if it is not there.

    Raises:
        NotBuilt: It cannot be built.
        CannotRunHere: Another process has held the build's lock for :data:`PATIENCE` seconds.
    """
    return Library(build())


def build(patience: float = PATIENCE) -> Path:
    """Build the library where it is not built yet.

    Args:
        patience: Seconds to wait for another process that builds.

    Returns:
        The path of the shared library, below torch's folder for extensions
        (``TORCH_EXTENSIONS_DIR``, else ``torch_extensions`` in the user's cache).

    Raises:
        NotBuilt: It cannot be built.
        CannotRunHere: Another process has held the build's lock for so long.
    """
    flags = (*_FLAGS, *_MACHINE.get(torch.backends.cpu.get_cpu_capability(), ()))
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(flags).encode()).hexdigest()[:16]
    folder = _root() / f"{_NAME}-{key}"
    built = folder / f"{_NAME}.so"
    if built.exists():
        return built
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{folder} cannot be made: {error}"
        raise NotBuilt(message) from error
    lock = folder / "build.lock"
    try:
        with filelock.FileLock(lock, timeout=patience):
            if not built.exists():
                _compile(folder, built, flags)
    except filelock.Timeout as error:
        raise CannotRunHere(
            asked="the C++ of seam 'm2rnn', which another process is building",
            found=f"the lock {lock} has been held for {patience:g} seconds",
            next=f"end the process that holds it; if there is none, delete {folder}",
            subject="m2rnn",
        ) from error
    return built


def _root() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(caches) / "torch_extensions")


def _compile(folder: Path, built: Path, flags: tuple[str, ...]) -> None:
    # Imported where it is used: it takes a second, and logs where there is no CUDA.
    from torch.utils import cpp_extension

    for abandoned in folder.glob("building-*"):  # by a build that was killed: the lock is ours
        shutil.rmtree(abandoned, ignore_errors=True)
    workshop = Path(tempfile.mkdtemp(prefix="building-", dir=folder))
    try:
        with _ninja_on_path():
            cpp_extension.load(
                name=_NAME,
                sources=[str(SOURCE)],
                extra_cflags=list(flags),
                extra_ldflags=["-fopenmp"],
                build_directory=str(workshop),
                is_python_module=False,
            )
        # A process that builds twice gets another name for it from torch.
        (made,) = workshop.glob(f"{_NAME}*.so")
        made.replace(built)
    except (RuntimeError, OSError) as error:  # what the loader raises for compilers, ninja, disks
        message = f"building {SOURCE.name} failed: {error}"
        raise NotBuilt(message) from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


@contextmanager
def _ninja_on_path() -> Iterator[None]:
    """Let torch find the ninja of this environment, whose scripts need not be on PATH."""
    path = os.environ.get("PATH", "")
    try:
        import ninja

        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, path])
    except ImportError:
        pass
    try:
        yield
    finally:
        os.environ["PATH"] = path


if __name__ == "__main__":
    print(build())
