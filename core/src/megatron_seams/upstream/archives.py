"""The source of a megatron-core in an archive: a wheel or an sdist."""

import fnmatch
from collections.abc import Callable, Mapping
from pathlib import Path

from megatron_seams.base.archives import ArchiveError, Wheel, is_tar, is_zip, read_sdist
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


def open_archive(path: Path) -> MegatronSource | None:
    """The megatron-core in a wheel or an sdist; None if the file is neither.

    Raises:
        MegatronMissing: There is none in it, or it is damaged.
    """
    try:
        if is_zip(path):
            return _open_wheel(path)
        return _open_sdist(path) if is_tar(path) else None
    except ArchiveError as error:
        raise _missing(path, f"it cannot be read: {error}") from error


def _open_wheel(path: Path) -> MegatronSource:
    # Opened once, for as long as the source is used: reading the list of a wheel's files takes
    # longer than reading a file.
    archive = Wheel(path)

    def get(name: str) -> bytes | None:
        try:
            return archive.read(name)
        except ArchiveError as error:
            raise unknown_shape(str(path), f"{name} cannot be read: {error}") from error

    def metadata() -> dict[str, bytes]:
        found = [
            name
            for name in archive.names
            if fnmatch.fnmatchcase(name, f"{RECORD}*.dist-info/{METADATA}")
        ]
        return {METADATA: get(found[0]) or b""} if len(found) == 1 else {}

    return _source(path, get, metadata)


def _open_sdist(path: Path) -> MegatronSource:
    files = read_sdist(path, suffix=".py", names=(PKG_INFO, PROJECT))

    def metadata() -> dict[str, bytes]:
        return {name: files[name] for name in (PKG_INFO, PROJECT) if name in files}

    return _source(path, files.get, metadata)


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
