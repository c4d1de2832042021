"""Building a seam's C++ on the machine that runs it: once, and never twice at a time.

It is built on first use for the machine's own processor, by torch's extension loader, and kept
below torch's folder for extensions. A build happens in a folder of its own, under a lock that the
operating system releases when the process ends, and its result is moved into place in one step. So
a killed build leaves nothing that a later process could wait for or load.

The result is a plain shared library, for ctypes: C++ without torch's headers is built in seconds,
and serves every torch.

A kept build is loaded again only if nobody else can have put it there and nothing of it is missing:
its folder and file belong to this user (or to root) and nobody else may write them, and it has the
digest that was recorded when it was built. Otherwise it is built anew.
"""

import functools
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import filelock
import torch

from megatron_seams.base.files import read_file, replace_bytes
from megatron_seams.errors import CannotRunHere

#: Seconds to wait for another process that builds; a build takes some ten.
PATIENCE: Final = 300.0

_MAX_BYTES: Final = 256 * 1024 * 1024

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
    folder = extensions_folder() / f"{name}-{_key(source.parent, (*flags, *link_flags))}"
    built = folder / f"{name}.so"
    if kept_bytes(built) is not None:
        return built
    _make_private(folder)
    lock = folder / "build.lock"
    try:
        with filelock.FileLock(lock, timeout=patience):
            if kept_bytes(built) is None:
                _compile(source, built, flags, link_flags)
    except filelock.Timeout as error:
        raise CannotRunHere(
            asked=f"the C++ of seam {seam!r}, which another process is building",
            found=f"the lock {lock} has been held for {patience:g} seconds",
            next=f"end the process that holds it; if there is none, delete {folder}",
            subject=seam,
        ) from error
    except OSError as error:  # a Timeout is one too
        message = f"{lock} cannot be locked: {error}"
        raise NotBuilt(message) from error
    return built


def _key(folder: Path, options: Iterable[str]) -> str:
    """What a library is kept by: the files of its source's folder, and the options, as 16 digits.

    Raises:
        NotBuilt: A file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for file in sorted(it for it in folder.iterdir() if it.is_file()):
            digest.update(f"{file.name}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError as error:
        message = f"the source in {folder} cannot be read: {error}"
        raise NotBuilt(message) from error
    digest.update(" ".join(options).encode())
    return digest.hexdigest()[:16]


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
    """The folder of compiled code: ``TORCH_EXTENSIONS_DIR``, else torch's in the user's cache.

    Raises:
        NotBuilt: No variable names one, and the user has no home, as in a container.
    """
    if named := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(named)
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        message = "the user has no home to keep it in; name a folder by TORCH_EXTENSIONS_DIR"
        raise NotBuilt(message) from error
    return caches / "torch_extensions"


# --- what is kept -----------------------------------------------------------------------------


def kept_bytes(file: Path) -> bytes | None:
    """The compiled code that :func:`keep_bytes`, or :func:`build`, has left in a file.

    Args:
        file: In a folder of its own below :func:`extensions_folder`.

    Returns:
        Its bytes; None where there is none, where another user may have put it there, or where it
        is not what was recorded: it is then to be made anew.
    """
    record = _record_of(file)
    if not all(map(_is_private, (file.parent, file, record))):
        return None
    try:
        data = read_file(file, _MAX_BYTES)
        stated = read_file(record, _MAX_BYTES)
    except OSError:
        return None
    return data if stated == _digest(data) else None


def keep_bytes(file: Path, data: bytes) -> None:
    """Keep compiled code in a file, for :func:`kept_bytes`.

    Raises:
        NotBuilt: The folder cannot be made or written, or belongs to another user.
    """
    _make_private(file.parent)
    try:
        for each, content in ((file, data), (_record_of(file), _digest(data))):
            if not _is_private(each) or not each.is_file():  # a link or a pipe would be written
                each.unlink(missing_ok=True)
            replace_bytes(each, content)
            each.chmod(0o644)
    except OSError as error:
        message = f"{file} cannot be written: {error}"
        raise NotBuilt(message) from error


def _record_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _make_private(folder: Path) -> None:
    """Make a folder that nobody else may write, and empty one that somebody could.

    Raises:
        NotBuilt: It cannot be made, or is another user's.
    """
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        owner = folder.lstat().st_uid
        if owner not in (os.geteuid(), 0):
            message = (
                f"{folder} belongs to another user ({owner}), and nothing of it is loaded; name a "
                "folder of your own by TORCH_EXTENSIONS_DIR"
            )
            raise NotBuilt(message)
        if not _is_private(folder):
            # Made by a release, or under a umask, that let others write it: what is in it may be
            # theirs. A process that has loaded something of it keeps that.
            for file in folder.iterdir():
                if file.is_file() and file.suffix in (".so", ".cubin", ".sha256"):
                    file.unlink()
            folder.chmod(0o755)
    except OSError as error:
        message = f"{folder} cannot be made: {error}"
        raise NotBuilt(message) from error


def _is_private(path: Path) -> bool:
    """Whether a file or folder is this user's or root's, no link, and nobody else may write it."""
    try:
        found = path.lstat()
    except OSError:
        return False
    mine = found.st_uid in (os.geteuid(), 0)
    return mine and not stat.S_ISLNK(found.st_mode) and not found.st_mode & 0o022


# --- the compiler -----------------------------------------------------------------------------


def _compile(source: Path, built: Path, flags: Sequence[str], link_flags: Sequence[str]) -> None:
    # Imported where it is used: it takes a second, and logs where there is no CUDA.
    from torch.utils import cpp_extension

    folder, name = built.parent, built.stem
    for abandoned in folder.glob("building-*"):  # by a build that was killed: the lock is ours
        shutil.rmtree(abandoned, ignore_errors=True)
    try:
        workshop = Path(tempfile.mkdtemp(prefix="building-", dir=folder))
    except OSError as error:
        message = f"{folder} cannot be written: {error}"
        raise NotBuilt(message) from error
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
        keep_bytes(built, made.read_bytes())
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
