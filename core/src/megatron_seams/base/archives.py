"""Wheels and sdists, read without being unpacked, and only up to a size.

An archive may be damaged anywhere, may claim sizes that no disk has, and may hold in some kilobytes
what unpacks to terabytes. Whatever it is, its reader takes seconds and some hundred megabytes.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, cast

#: What a file of an archive may be unpacked to, and an sdist as a whole, in bytes.
MAX_FILE: Final = 16 * 1024 * 1024
MAX_UNPACKED: Final = 512 * 1024 * 1024
#: The files of an sdist that are kept, all together.
_MAX_KEPT: Final = 128 * 1024 * 1024
#: The size of the list of a wheel's files, and the number of an sdist's entries.
_MAX_LIST: Final = 16 * 1024 * 1024
_MAX_ENTRIES: Final = 100_000
#: How the files of wheels are compressed.
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_END: Final = struct.Struct("<4s4H2LH")


class ArchiveError(ValueError):
    """An archive that cannot be read; its message says why."""


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    """Turn whatever a reader of archives raises into an ArchiveError."""
    try:
        yield
    except ArchiveError:
        raise
    except MemoryError as error:
        message = "it asks for more memory than there is"
        raise ArchiveError(message) from error
    except Exception as error:
        message = f"{type(error).__name__}: {error!s:.200}"
        raise ArchiveError(message) from error


# --- wheels -----------------------------------------------------------------------------------


def is_zip(path: Path) -> bool:
    """Whether a regular file ends as a zip archive does."""
    try:
        return path.is_file() and zipfile.is_zipfile(path)
    except (OSError, ValueError):
        return False


class Wheel:
    """A zip archive that is open for reading.

    Args:
        path: A regular file.

    Raises:
        ArchiveError: It is no zip archive, is damaged, or lists far too many files.
    """

    def __init__(self, path: Path) -> None:
        with _damage_named():
            self._archive = zipfile.ZipFile(_listed(path))

    def __enter__(self) -> "Wheel":
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    @property
    def names(self) -> list[str]:
        """The names of its files."""
        return self._archive.namelist()

    def read(self, name: str, most: int = MAX_FILE) -> bytes | None:
        """The bytes of a file; None where there is none.

        Raises:
            ArchiveError: It is damaged, or unpacks to more than ``most`` bytes.
        """
        with _damage_named():
            try:
                member = self._archive.getinfo(name)
            except KeyError:
                return None
            if member.compress_type not in _METHODS:
                message = f"{name:.200} is compressed as no file of a wheel is"
                raise ArchiveError(message)
            with self._archive.open(member) as stream:
                return _whole(stream, name, most)


def _listed(path: Path) -> Path:
    """The path, where the list of the archive's files can be held in memory.

    Raises:
        ArchiveError: It is longer; to read it would be what takes the memory.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(max(0, size - _END.size - 0xFFFF))
        tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        message = "it is no zip archive"
        raise ArchiveError(message)
    length = _END.unpack_from(tail, at)[5]
    if length > _MAX_LIST:
        message = (
            f"the list of its files has {length:,} bytes; that of a wheel at most {_MAX_LIST:,}"
        )
        raise ArchiveError(message)
    return path


def _whole(stream: IO[bytes], name: str, most: int) -> bytes:
    data = stream.read(most + 1)
    if len(data) > most:
        message = f"{name:.200} unpacks to more than {most:,} bytes"
        raise ArchiveError(message)
    return data


# --- sdists -----------------------------------------------------------------------------------


#: How a compressed archive begins -> what reads it.
_COMPRESSED: Final[Mapping[bytes, Callable[[Any], Any]]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


def is_tar(path: Path) -> bool:
    """Whether a regular file is a tar archive, compressed or not."""
    try:
        with _opened(path) as archive:
            return archive.next() is not None
    except ArchiveError:
        return False


def read_sdist(path: Path, suffix: str, names: tuple[str, ...]) -> dict[str, bytes]:
    """The files of an sdist, by their names without its top folder, whose own carries a version.

    Args:
        path: A tar archive, compressed or not.
        suffix: How those below a folder end that are read.
        names: Those beside the folders that are read.

    Raises:
        ArchiveError: It is damaged, or unpacks to more than :data:`MAX_UNPACKED` bytes.
    """
    found: dict[str, bytes] = {}
    kept = 0
    with _opened(path) as archive:
        for member in _members(archive):
            _, _, name = member.name.removeprefix("./").partition("/")
            wanted = name in names or ("/" in name and name.endswith(suffix))
            if wanted and member.isfile():
                file = archive.extractfile(member)
                found[name] = _whole(file, name, MAX_FILE) if file else b""
                kept += len(found[name])
            if kept > _MAX_KEPT:
                message = f"its files of these kinds unpack to more than {_MAX_KEPT:,} bytes"
                raise ArchiveError(message)
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar archive, open for reading; whatever is wrong with it is an ArchiveError."""
    with _damage_named(), contextlib.ExitStack() as closing:
        stream: IO[bytes] = closing.enter_context(path.open("rb"))
        start = stream.read(6)
        stream.seek(0)
        for magic, reader in _COMPRESSED.items():
            if start.startswith(magic):
                stream = closing.enter_context(reader(stream))
        # It is no file of the typing module's, and has all that tarfile asks of one.
        bounded = cast("IO[bytes]", _Bounded(stream))
        yield closing.enter_context(tarfile.TarFile(fileobj=bounded))


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    bounded = cast("_Bounded", archive.fileobj)
    for _ in range(_MAX_ENTRIES):
        bounded.spent = 0
        member = archive.next()
        if member is None:
            return
        bounded.spent = 0
        yield member
        # It keeps every one that it has read; typeshed does not know the list.
        archive.members.clear()  # type: ignore[attr-defined]
    message = f"it has more than {_MAX_ENTRIES:,} entries"
    raise ArchiveError(message)


class _Bounded:
    """A file that gives only so much, wherever its reader goes in it.

    Args:
        stream: The file, decompressed.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        #: The bytes read for the present entry: its header, then its contents.
        self.spent = 0

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes."""
        self.spent += max(size, 0)
        if size < 0 or self.spent > 2 * MAX_FILE:
            message = f"one entry of it takes more than {2 * MAX_FILE:,} bytes to read"
            raise ArchiveError(message)
        self._check(self._stream.tell() + size)
        return self._stream.read(size)

    def seek(self, position: int) -> int:
        """Go to a position."""
        self._check(position)
        return self._stream.seek(position)

    def tell(self) -> int:
        """The position."""
        return self._stream.tell()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _check(self, position: int) -> None:
        if position > MAX_UNPACKED:
            message = f"it unpacks to more than {MAX_UNPACKED:,} bytes"
            raise ArchiveError(message)
