"""Building a seam's C++ on the machine that runs it: once, and never twice at a time.

It is built on first use for the machine's own processor, by torch's extension loader, and kept
below torch's folder for extensions. A build happens in a folder of its own, under a lock that the
operating system releases when the process ends, and its result is moved into place in one step. So
a killed build leaves nothing that a later process could wait for or load.

The result is a plain shared library, for ctypes: C++ without torch's headers is built in seconds,
and serves every torch.
"""

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import filelock
import torch

from megatron_seams.errors import CannotRunHere

#: Seconds to wait for another process that builds; a build takes some ten.
PATIENCE: Final = 300.0

#: torch's name for what the processor can do -> the compiler's options.
_MACHINE: Final = {
    "AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "AVX2": ("-march=x86-64-v3",),
}


class NotBuilt(Exception):
    """The C++ is not built and cannot be: no compiler, no ninja, no folder to build in."""


class SlowBackend(UserWarning):
    """A kernel cannot run here, and a slower one took its place (:mod:`.kernels`)."""


def build(
    source: Path,
    *,
    name: str,
    seam: str,
    flags: Sequence[str],
    link_flags: Sequence[str] = (),
    patience: float = PATIENCE,
) -> Path:
    """Build a shared library where it is not built yet.

    Args:
        source: The C++ file. It may include others of its folder; a change of any of them makes
            another library.
        name: The library's name, by which it is kept.
        seam: The seam's name, for messages.
        flags: Options of the compiler, beside those for this processor.
        link_flags: Options of the linker.
        patience: Seconds to wait for another process that builds.

    Returns:
        The path of the library, below torch's folder for extensions (``TORCH_EXTENSIONS_DIR``, else
        ``torch_extensions`` in the user's cache).

    Raises:
        NotBuilt: It cannot be built.
        CannotRunHere: Another process has held the build's lock for ``patience`` seconds.
    """
    flags = (*flags, *_MACHINE.get(torch.backends.cpu.get_cpu_capability(), ()))
    code = b"".join(file.read_bytes() for file in sorted(source.parent.iterdir()))
    key = hashlib.sha256(code + " ".join((*flags, *link_flags)).encode()).hexdigest()[:16]
    folder = extensions_folder() / f"{name}-{key}"
    built = folder / f"{name}.so"
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
                _compile(source, built, flags, link_flags)
    except filelock.Timeout as error:
        raise CannotRunHere(
            asked=f"the C++ of seam {seam!r}, which another process is building",
            found=f"the lock {lock} has been held for {patience:g} seconds",
            next=f"end the process that holds it; if there is none, delete {folder}",
            subject=seam,
        ) from error
    return built


@functools.cache
def build_fault(library: Callable[[], object]) -> str | None:
    """Try to load a seam's C++, once for each process.

    Args:
        library: Builds it where it is not built yet, and loads it.

    Returns:
        Why it cannot be built; None where it is loaded.

    Raises:
        CannotRunHere: Another process holds the build's lock.
    """
    try:
        library()
    except NotBuilt as error:
        return str(error)
    return None


def extensions_folder() -> Path:
    """The folder of compiled code: ``TORCH_EXTENSIONS_DIR``, else torch's in the user's cache."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(caches) / "torch_extensions")


def _compile(source: Path, built: Path, flags: Sequence[str], link_flags: Sequence[str]) -> None:
    # Imported where it is used: it takes a second, and logs where there is no CUDA.
    from torch.utils import cpp_extension

    folder, name = built.parent, built.stem
    for abandoned in folder.glob("building-*"):  # by a build that was killed: the lock is ours
        shutil.rmtree(abandoned, ignore_errors=True)
    workshop = Path(tempfile.mkdtemp(prefix="building-", dir=folder))
    try:
        with _ninja_on_path():
            cpp_extension.load(
                name=name,
                sources=[str(source)],
                extra_cflags=list(flags),
                extra_ldflags=list(link_flags),
                build_directory=str(workshop),
                is_python_module=False,
            )
        # A process that builds twice gets another name for it from torch.
        (made,) = workshop.glob(f"{name}*.so")
        made.replace(built)
    except (RuntimeError, OSError) as error:  # what the loader raises for compilers, ninja, disks
        message = f"building {source.name} failed: {error}"
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
