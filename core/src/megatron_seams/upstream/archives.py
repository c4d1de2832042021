"""The megatron-core in an archive: a wheel, or an sdist. Only text is read."""

import fnmatch
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import attrs

from megatron_seams.upstream.source import (
    METADATA,
    PKG_INFO,
    PROJECT,
    RECORD,
    VERSION,
    MegatronSource,
    missing,
    unknown_shape,
)

#: What the readers of archives raise on a damaged one.
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError)


def open_archive(path: Path) -> MegatronSource | None:
    """The megatron-core in a wheel or an sdist; None if the file is neither.

    Raises:
        MegatronMissing: There is none in it, or it is damaged.
    """
    if zipfile.is_zipfile(path):
        return _zip(path)
    return _tar(path) if _is_tar(path) else None


def _zip(path: Path) -> MegatronSource:
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

    def about() -> dict[str, bytes]:
        found = [
            name
            for name in archive.namelist()
            if fnmatch.fnmatchcase(name, f"{RECORD}*.dist-info/{METADATA}")
        ]
        return {METADATA: get(found[0]) or b""} if len(found) == 1 else {}

    return _archived(path, lambda name: get(f"megatron/{name}"), about)


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except _DAMAGED:  # compressed, and cut off before its first entry ends
        return False


def _tar(path: Path) -> MegatronSource:
    try:
        with tarfile.open(path) as archive:
            # An sdist has one top folder, whose name carries the version.
            members = {
                str(PurePosixPath(*PurePosixPath(member.name).parts[1:])): member
                for member in archive.getmembers()
                if member.isfile()
            }
    except _DAMAGED as error:
        raise attrs.evolve(
            missing(), asked=f"the megatron-core in {path}", found=f"it cannot be read: {error}"
        ) from error

    def get(name: str) -> bytes | None:
        member = members.get(name)
        if member is None:
            return None
        with tarfile.open(path) as archive:
            file = archive.extractfile(member)
            return file.read() if file else None

    def about() -> dict[str, bytes]:
        return {name: get(name) or b"" for name in (PKG_INFO, PROJECT) if name in members}

    return _archived(path, lambda name: get(f"megatron/{name}"), about)


def _archived(
    path: Path, read: Callable[[str], bytes | None], about: Callable[[], Mapping[str, bytes]]
) -> MegatronSource:
    if read(VERSION) is None:
        raise attrs.evolve(missing(), asked=f"the megatron-core in {path}", found="none is in it")
    return MegatronSource(origin=str(path), read=read, about=about)
