"""Files: replaced as a whole, read up to a limit, and found in a source tree."""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

_NOT_SOURCE = frozenset({"__pycache__", "node_modules", "site-packages"})
#: The bytes that are read at once: room is made for as many, however small the file is.
_PIECE = 64 * 1024


def replace_text(path: Path, text: str) -> None:
    """Give a file a new content in UTF-8, whole or not at all: :func:`replace_bytes`.

    Raises:
        OSError: It cannot be written, and is what it was. No temporary file is left.
        UnicodeEncodeError: The text cannot be written in UTF-8; likewise.
    """
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, data: bytes) -> None:
    """Give a file a new content, whole or not at all.

    The content goes to a temporary file in the same folder, which then takes the file's place:
    whoever reads the file, and whatever interrupts the writing, there is always the old content or
    the new one. An existing file keeps its mode; of a symbolic link the target is replaced. A pipe
    or a device (``/dev/stdout``) has no content to keep and is written directly.

    Args:
        path: The file; its folder must exist.
        data: The new content.

    Raises:
        OSError: It cannot be written, and is what it was. No temporary file is left.
    """
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        path.write_bytes(data)
        return
    target = path.resolve()
    if mode is not None:
        # Who may write the folder could replace the file without being allowed to write it.
        os.close(os.open(target, os.O_WRONLY))
    temporary = target.with_name(f".megatron-seams-{os.urandom(8).hex()}.tmp")
    # 0o666, less what the umask takes away, is what a new file gets from open().
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            if mode is not None:
                os.fchmod(handle, stat.S_IMODE(mode))
            stream.write(data)
            stream.flush()
            os.fsync(handle)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


@contextlib.contextmanager
def locked(path: Path, *, seconds: float = 60.0) -> Iterator[None]:
    """Keep other processes that lock the same file waiting, for the time of the block.

    The lock is a file beside it, and is gone afterwards; if this process dies, the operating system
    gives the lock up. Of a symbolic link the target is locked.

    Args:
        path: The file, which need not exist; its folder must.
        seconds: How long to wait for another process.

    Raises:
        OSError: The folder cannot be written, or its file system has no locks.
        TimeoutError: Another process has the lock, and kept it (a kind of OSError).
    """
    import fcntl  # not on every system that reads plans

    target = path.resolve()
    beside = target.with_name(f".{target.name}.lock")
    until = time.monotonic() + seconds
    while True:
        handle = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, beside):
                break
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(handle)
                message = f"another process has kept {beside} locked for {seconds:.0f} s"
                raise TimeoutError(message) from None
            time.sleep(0.02)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        yield
    finally:
        try:
            # Before the lock is given up: whoever waits makes another.
            beside.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether a file is still the one at a path: who had the lock before has removed it."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable, where the operating system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def real_path(path: Path) -> Path:
    """A path without links; as it is, where its links go round in a circle or it is none."""
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # the last for a circle, until Python 3.13
        return path


def read_file(path: Path, most: int) -> bytes:
    """The whole of a regular file.

    Every reader of files that somebody else may have written uses this, or :func:`read_at_most`. A
    pipe would keep its reader waiting for ever, a device may do anything when it is opened, and a
    file of terabytes costs nothing to make.

    Args:
        path: The file, or a link to it.
        most: The size that it may have, in bytes.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger.
    """
    data = read_at_most(path, most + 1)
    if len(data) > most:
        message = f"it has more than {most:,} bytes, the most that is read"
        raise OSError(errno.EFBIG, message, str(path))
    return data


def read_at_most(path: Path, most: int) -> bytes:
    """The first ``most`` bytes of a regular file, or all of it if it has fewer.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    try:
        # Looked at before it is opened, which a device may take for a command; and opened without
        # waiting, since a pipe may have taken its place in between.
        _require_regular(path, path.stat().st_mode)
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | os.O_CLOEXEC)
        try:
            _require_regular(path, os.fstat(handle).st_mode)
            return _read(handle, most)
        finally:
            os.close(handle)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, str(error), str(path)) from error


def _read(handle: int, most: int) -> bytes:
    pieces: list[bytes] = []
    while most > 0 and (piece := os.read(handle, min(most, _PIECE))):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    message = "it is a pipe, a socket or a device; only regular files are read"
    raise OSError(errno.EINVAL, message, str(path))


def in_words(error: Exception) -> str:
    """What an error says: of one of the operating system's, its words alone.

    A message names the file beside them, and the number of an error tells a reader nothing.
    """
    return (isinstance(error, OSError) and error.strerror) or str(error)


def files_named(root: Path, name: str) -> Iterator[Path]:
    """Every file of that name below ``root`` (see :func:`files_below`), sorted by path."""
    return (file for file in files_below(root) if file.name == name)


def files_below(root: Path) -> Iterator[Path]:
    """Every source file below ``root``, sorted by path.

    Left out is what was installed, built or hidden in the tree: virtual environments, metadata of
    distributions, byte code, build folders of projects, folders whose name begins with a dot. No
    link to a folder is followed.
    """
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if _is_source(Path(folder) / name))
        yield from (Path(folder) / name for name in sorted(names))


def _is_source(folder: Path) -> bool:
    name = folder.name
    if name.startswith(".") or name.endswith((".egg-info", ".dist-info")) or name in _NOT_SOURCE:
        return False
    # Inside a package they are names like any other.
    if name in ("build", "dist") and (folder.parent / "pyproject.toml").is_file():
        return False
    return not (folder / "pyvenv.cfg").is_file()
