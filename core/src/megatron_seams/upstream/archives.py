"""The source of a megatron-core in an archive: a wheel or an sdist."""

import fnmatch
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from megatron_seams.errors import MegatronMissing
from megatron_seams.upstream.source import (
    DISTRIBUTION,
    METADATA,
    PKG_INFO,
    PROJECT,
    RECORD,
    VERSION,
    MegatronSource,
    unknown_shape,
)

#: The exceptions of the readers of archives on a damaged one.
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError)


def open_archive(path: Path) -> MegatronSource | None:
    """The megatron-core in a wheel or an sdist; None if the file is neither.

    Raises:
        MegatronMissing: There is none in it, or it is damaged.
    """
    if zipfile.is_zipfile(path):
        return _open_wheel(path)
    return _open_sdist(path) if _is_tar(path) else None


def _open_wheel(path: Path) -> MegatronSource:
    # Opened once, for as long as the source is used: reading the list of a wheel's files takes
    # longer than reading a file.
    archive = zipfile.ZipFile(path)

    def get(name: str) -> bytes | None:
        try:
            return archive.read(name)
        except KeyError:
            return None
        except _DAMAGED as error:
            raise unknown_shape(str(path), f"{name} cannot be read: {error}") from error

    def metadata() -> dict[str, bytes]:
        found = [
            name
            for name in archive.namelist()
            if fnmatch.fnmatchcase(name, f"{RECORD}*.dist-info/{METADATA}")
        ]
        return {METADATA: get(found[0]) or b""} if len(found) == 1 else {}

    return _source(path, get, metadata)


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except _DAMAGED:  # compressed, and cut off before its first entry ends
        return False


def _open_sdist(path: Path) -> MegatronSource:
    try:
        with tarfile.open(path) as archive:
            # An sdist has one top folder, whose name carries the version.
            members = {
                str(PurePosixPath(*PurePosixPath(member.name).parts[1:])): member
                for member in archive.getmembers()
                if member.isfile()
            }
    except _DAMAGED as error:
        raise _missing(path, f"it cannot be read: {error}") from error

    def get(name: str) -> bytes | None:
        member = members.get(name)
        if member is None:
            return None
        with tarfile.open(path) as archive:
            file = archive.extractfile(member)
            return file.read() if file else None

    def metadata() -> dict[str, bytes]:
        return {name: get(name) or b"" for name in (PKG_INFO, PROJECT) if name in members}

    return _source(path, get, metadata)


def _source(
    path: Path, get: Callable[[str], bytes | None], metadata: Callable[[], Mapping[str, bytes]]
) -> MegatronSource:
    """The source in an archive.

    Args:
        path: The archive.
        get: A file of it -> its bytes, or None.
        metadata: The files that describe the distribution.
    """
    if get(f"megatron/{VERSION}") is None:
        raise _missing(path, "none is in it")
    return MegatronSource(
        origin=str(path), read=lambda name: get(f"megatron/{name}"), metadata=metadata
    )


def _missing(path: Path, found: str) -> MegatronMissing:
    return MegatronMissing(
        asked=f"the megatron-core in {path}",
        found=found,
        next="name a wheel, an sdist, a checkout or an installation folder",
        subject=DISTRIBUTION,
        file=str(path),
    )
