"""Inputs that somebody made to stop an audit, how they are read, and the bounds of each."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs

from megatron_seams.base.toml import with_lines
from megatron_seams.governance.ownership import seam_folders
from megatron_seams.planning.environment import read_environment
from megatron_seams.seams.discovery import Discovery, discover
from megatron_seams.seams.source_trees import discover_in
from seam_support import install_plugin, manifest_table, source_plugin

#: What one input may take: seconds by the clock of a busy machine, and the address space of the
#: process that reads them all, in bytes.
SECONDS: Final = 20
MEMORY: Final = 1536 * 1024 * 1024

KIB, MIB = 1024, 1024 * 1024
DEEP = "[" * 200_000


@attrs.frozen(kw_only=True)
class Input:
    """One input.

    Attributes:
        make: Writes it into a folder, and gives its place where that is another.
        read: Reads it, and gives the codes of the faults that are found.
        codes: The codes that are expected.
        finder: What stands first among the finders of imports meanwhile.
    """

    make: Callable[[Path], Path | None]
    read: Callable[[Path], list[str]]
    codes: tuple[str, ...]
    finder: Any = None


INPUTS: dict[str, Input] = {}


def hostile(
    read: Callable[[Path], list[str]], *codes: str, finder: Any = None
) -> Callable[[Callable[[Path], Path | None]], Callable[[Path], Path | None]]:
    """Register what a function writes."""

    def register(make: Callable[[Path], Path | None]) -> Callable[[Path], Path | None]:
        name = make.__name__.strip("_")
        assert name not in INPUTS
        INPUTS[name] = Input(make=make, read=read, codes=codes, finder=finder)
        return make

    return register


# --- how they are read ------------------------------------------------------------------------


def _codes(found: Discovery) -> list[str]:
    """The codes of the faults that are about anything but the good plugin, which is there."""
    assert [seam.name for seam in found.seams if seam.name == "sound"] == ["sound"], found
    assert not [one for one in found.broken if one.name == "sound"]
    with_lines(found.findings)
    for finding in found.findings:
        assert len(str(finding)) < 4000
    return sorted({finding.code for finding in found.findings})


def installed(_: Path) -> list[str]:
    """The findings of an audit of the environment."""
    return _codes(discover())


def tree(folder: Path) -> list[str]:
    """The findings of an audit of source trees."""
    good = folder.parent / f"{folder.name}-good"
    source_plugin(good, "acme-sound", {"acme_sound": manifest_table("sound", "family_sound")})
    seam_folders(folder)
    return _codes(discover_in([good, folder]))


def wheel(file: Path) -> list[str]:
    """The findings of an audit of wheels."""
    good = file.with_name("good.whl")
    site = file.parent / "good-files"
    install_plugin(site, "acme-sound", {"acme_sound": manifest_table("sound", "family_sound")})
    with zipfile.ZipFile(good, "w") as archive:
        for part in sorted(site.rglob("*")):
            archive.write(part, part.relative_to(site).as_posix())
    return _codes(discover_in([good, file]))


def megatron(path: Path) -> list[str]:
    """The faults of a plan against a Megatron, and of the plugins beside it."""
    found = read_environment(path)
    assert "sound" in [seam.name for seam in found.discovery.seams]
    return sorted({fault.code for fault in found.faults})


def raising(read: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    """The refusal of a reader of one file."""

    def codes(path: Path) -> list[str]:
        read(path)
        return _codes(discover())

    return codes


# --- the plugin that they damage --------------------------------------------------------------


def plugin(site: Path, **keys: Any) -> Path:
    """A plugin ``bad`` that is sound so far; gives its ``.dist-info``."""
    return install_plugin(site, "acme-bad", {"acme_bad": manifest_table("bad", "bad", **keys)})


def manifest(site: Path, data: bytes) -> None:
    install_plugin(site, "acme-bad", {"acme_bad": data}, entry_points={"bad": "acme_bad"})
