"""Digests of a seam: of the code that an import would run, and of the manifest keys that decide.

Two processes of one run, one of which imports the plugin while the other reads it, get the same
digest: what an import writes (byte code that says the same as its source) is not part of it, nor
are the files of editors and tools.
"""

import csv
import fnmatch
import hashlib
import importlib.machinery
import importlib.util
import marshal
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from megatron_seams.base.canonical_json import json_digest
from megatron_seams.base.files import read_file
from megatron_seams.base.structure import key_of
from megatron_seams.errors import ManifestUnreadable
from megatron_seams.seams.manifest import MANIFEST
from megatron_seams.seams.seam import Seam

#: Manifest keys that are information: another owner or review date builds the same layer.
INFORMATION: Final = frozenset(
    {
        "seam.owner",
        "seam.summary",
        "seam.introduced",
        "seam.review-by",
        "upstream.native-since",
        "upstream.tracking",
        "family.summary",
    }
)

#: Folders that hold no code of the package, whatever is in them.
_CACHES: Final = frozenset(
    {
        *("__pycache__", ".git", ".hg", ".svn", ".ipynb_checkpoints"),
        *(".mypy_cache", ".pytest_cache", ".ruff_cache"),
    }
)
#: Files of editors, file systems and half-written downloads.
_TEMPORARY: Final = (
    *("*~", "#*#", ".#*", ".*.sw?", ".~lock.*", "*.tmp", "*.temp", "*.bak", "*.orig", "*.rej"),
    *("*.part", "*.pyc.*", "*.lock", ".nfs*", ".fuse_hidden*", ".DS_Store", "Thumbs.db"),
    *(".coverage", ".coverage.*", "4913"),
)
#: Folders of a project that no build takes for a package of the distribution.
_NOT_SHIPPED: Final = frozenset(
    {
        *("tests", "test", "docs", "doc", "examples", "example", "benchmarks", "benchmark"),
        *("scripts", "tools", "build", "dist", "ci"),
    }
)
_EXTENSIONS: Final = tuple(importlib.machinery.EXTENSION_SUFFIXES)
_ATTEMPTS: Final = 5
#: What the code of a distribution has at most: files, bytes of all, bytes of a source.
_MOST_FILES: Final = 100_000
_MOST_BYTES: Final = 4 * 1024**3
_MOST_SOURCE: Final = 64 * 1024**2


def manifest_digest(seam: Seam) -> str:
    """SHA-256 over the keys of a manifest that decide what is built; not :data:`INFORMATION`."""
    return json_digest(_deciding(seam.manifest, ""))


def _deciding(value: Any, path: str) -> Any:
    if attrs.has(type(value)):
        keys = {
            key_of(field.name): getattr(value, field.name) for field in attrs.fields(type(value))
        }
    elif isinstance(value, Mapping):
        keys = dict(value)
    elif isinstance(value, tuple | list):
        return [_deciding(part, path) for part in value]
    else:
        return value if isinstance(value, bool | int | float | str | None) else str(value)
    made = {key: (f"{path}.{key}".lstrip("."), part) for key, part in keys.items()}
    return {key: _deciding(part, at) for key, (at, part) in made.items() if not _informs(at)}


def _informs(path: str) -> bool:
    """Whether a manifest's key informs and decides nothing."""
    of_option = path.startswith("options.") and path.endswith(".summary")
    return path in INFORMATION or (of_option and path.count(".") > 1)


def code_digest(seam: Seam) -> str:
    """SHA-256 over all code that an import would run from a seam's distribution.

    That is every file of its packages and modules, byte code without a source and extension
    modules among them, and data, which may be compiled (``csrc``). Links are followed. Of byte code
    beside a source only what would run *instead* of the source counts: where it is taken for valid
    and is not what the source compiles to.

    Left out are the files of editors and tools, byte code that is being written, and manifests, for
    which :func:`manifest_digest` stands.

    Raises:
        ManifestUnreadable: A file cannot be read, or there are more, or larger ones, than code has.
    """
    for left in reversed(range(_ATTEMPTS)):
        try:
            return _digest(seam)
        except FileNotFoundError as error:
            # A file that was listed is gone: somebody is saving it anew.
            if not left:
                raise _unreadable(seam, str(error)) from error
        except (OSError, ValueError, RecursionError, csv.Error) as error:
            raise _unreadable(seam, f"{type(error).__name__}: {error!s:.300}") from error
    raise AssertionError


def _unreadable(seam: Seam, found: str) -> ManifestUnreadable:
    return ManifestUnreadable(
        asked=f"the code of {seam.claim}, for its digest",
        found=found,
        next=f"take out of {seam.directory} what is no code, or reinstall {seam.distribution}",
        subject=seam.name,
        file=str(seam.directory),
    )


def _digest(seam: Seam) -> str:
    digest = hashlib.sha256()
    files = _files(seam)
    size = sum(file.stat().st_size for file in files.values())
    if size > _MOST_BYTES:
        message = f"its files have {size:,} bytes, and code at most {_MOST_BYTES:,}"
        raise ValueError(message)
    for name, file in sorted(files.items()):
        for part, content in _contents(name, file):
            digest.update(f"{part}\0".encode("utf-8", "surrogateescape"))
            digest.update(content)
    return digest.hexdigest()


def _contents(name: str, file: Path) -> Iterator[tuple[str, bytes]]:
    """The parts of a file that can run, each with its name and digest."""
    if file.suffix not in (".py", ".pyc"):
        with file.open("rb") as stream:
            yield name, hashlib.file_digest(stream, "sha256").digest()
        return
    data = read_file(file, _MOST_SOURCE)
    if file.suffix == ".pyc":
        data = data[:4] + data[16:]  # when the source was saved, which is not there, says nothing
    yield name, hashlib.sha256(data).digest()
    instead = _runs_instead(file, data) if file.suffix == ".py" else None
    if instead is not None:
        yield f"{name}c", hashlib.sha256(instead).digest()


# --- what there is ----------------------------------------------------------------------------


def _files(seam: Seam) -> dict[str, Path]:
    """Every file of the distribution that can run, by its name in the folder on the path."""
    top = seam.directory
    for _ in seam.package.split(".")[1:]:
        top = top.parent
    site = top.parent
    found: dict[str, Path] = {}
    for unit in _units(seam, site):
        if unit.is_dir():
            for file in _below(unit, ()):
                found[file.relative_to(site).as_posix()] = file
                if len(found) > _MOST_FILES:  # links to one another make any number
                    message = f"it has more than {_MOST_FILES:,} files"
                    raise ValueError(message)
        elif unit.is_file():
            found[unit.relative_to(site).as_posix()] = unit
    return found


def _units(seam: Seam, site: Path) -> set[Path]:
    """The packages and single files of a distribution, in the folder on the path."""
    own = _unit(site, tuple(seam.package.split(".")))
    units = {own if own.is_dir() else seam.directory}
    project = seam.installed
    if project is None:
        return units
    if any(site.resolve().is_relative_to(root.resolve()) for root in project.editable_roots()):
        return units | set(_importable(site))
    for row in csv.reader((project.recorded() or "").splitlines()):
        parts = Path(row[0]).parts if row and row[0] else ()
        if not parts or ".." in parts or Path(row[0]).is_absolute() or "__pycache__" in parts:
            continue
        if not parts[0].endswith((".dist-info", ".egg-info")):
            units.add(_unit(site, parts))
    return units


def _unit(site: Path, parts: tuple[str, ...]) -> Path:
    """The outermost package that a path is in; the path itself where it is in none."""
    for depth in range(1, len(parts) + 1):
        folder = site.joinpath(*parts[:depth])
        if _is_package(folder):
            return folder
    return site.joinpath(*parts)


def _is_package(folder: Path) -> bool:
    suffixes = (".py", ".pyc", *_EXTENSIONS)
    return any((folder / f"__init__{suffix}").is_file() for suffix in suffixes)


def _importable(site: Path) -> Iterator[Path]:
    """The packages and modules of an editable project's folder on the path."""
    is_project = any((site / name).is_file() for name in ("pyproject.toml", "setup.py"))
    for entry in site.iterdir():
        if is_project and (entry.stem in _NOT_SHIPPED or entry.name in ("setup.py", "conftest.py")):
            continue
        module = entry.name.endswith((".py", ".pyc", *_EXTENSIONS))
        if _is_package(entry) or (module and entry.is_file() and not _is_temporary(entry.name)):
            yield entry


def _below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Every file below a folder that can run, through links too, but round no circle."""
    real = folder.resolve()
    if real in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            if entry.name not in _CACHES:
                yield from _below(Path(entry.path), (*above, real))
        elif entry.is_file() and not _is_temporary(entry.name) and entry.name != MANIFEST:
            file = Path(entry.path)
            # Python takes an extension module before a source, and a source before byte code.
            if file.suffix != ".pyc" or not file.with_suffix(".py").is_file():
                yield file


def _is_temporary(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _TEMPORARY)


# --- byte code --------------------------------------------------------------------------------


def _runs_instead(file: Path, source: bytes) -> bytes | None:
    """The byte code that an import would run in the place of a source that says something else."""
    try:
        data = read_file(Path(importlib.util.cache_from_source(str(file))), _MOST_SOURCE)
    except (OSError, NotImplementedError):
        return None
    if not _is_taken(data, file, source):
        return None
    code = data[16:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meant = compile(source, str(file), "exec", dont_inherit=True)
        same = marshal.loads(code) == meant  # noqa: S302 - reading code runs none
    except Exception:  # noqa: BLE001 - whatever is wrong with either, they are not the same
        same = False
    return None if same else code


def _is_taken(data: bytes, file: Path, source: bytes) -> bool:
    """Whether an import takes byte code for valid (PEP 552)."""
    flags = int.from_bytes(data[4:8], "little")
    if data[:4] != importlib.util.MAGIC_NUMBER or len(data) < 16 or flags & ~0b11:
        return False
    if flags & 0b01:
        check = sys.modules["_imp"].check_hash_based_pycs
        if check == "always" or (check == "default" and flags & 0b10):
            return data[8:16] == importlib.util.source_hash(source)
        return True
    found = file.stat()
    stated = int.from_bytes(data[8:12], "little"), int.from_bytes(data[12:16], "little")
    return stated == (int(found.st_mtime) & 0xFFFFFFFF, found.st_size & 0xFFFFFFFF)
