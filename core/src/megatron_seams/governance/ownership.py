"""Ownership: a manifest's owner checked against CODEOWNERS."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from megatron_seams.base.files import files_below, files_named, read_file
from megatron_seams.base.toml import TomlError, read_toml
from megatron_seams.errors import (
    CodeownersInvalid,
    OwnedElsewhere,
    OwnerDiffers,
    OwnerMissing,
    OwnerShadowed,
    SeamsError,
)
from megatron_seams.governance.codeowners import Codeowners, Rule
from megatron_seams.governance.workspace import TABLE
from megatron_seams.seams.manifest import MANIFEST, MAX_BYTES
from megatron_seams.seams.seam import Seam


def seam_folders(root: Path) -> Mapping[str, tuple[Path, ...]]:
    """Seam name -> the folders of a tree whose ``seam.toml`` has that name."""
    found: dict[str, tuple[Path, ...]] = {}
    for file in files_named(root, MANIFEST):
        try:
            name = read_toml(read_file(file, MAX_BYTES))["seam"]["name"]
        except (OSError, TomlError, KeyError, TypeError):
            continue  # discovery reports the faults of a manifest
        if isinstance(name, str):
            found[name] = (*found.get(name, ()), file.parent)
    return found


def source_of(seam: Seam, folders: Mapping[str, tuple[Path, ...]]) -> tuple[Path, ...]:
    """The folders of a seam's source in a tree: its own if it is there, else all of its name."""
    named = folders.get(seam.name, ())
    own = tuple(folder for folder in named if folder.resolve() == seam.directory.resolve())
    return own or named


def ownership_faults(
    seam: Seam, codeowners: Codeowners, folders: Mapping[str, tuple[Path, ...]]
) -> Iterator[SeamsError]:
    """The files of a seam that CODEOWNERS does not give to the manifest's owner.

    Every file of the seam's folder is looked up; there is one finding for each line that decides.

    Args:
        seam: The seam.
        codeowners: The file.
        folders: The result of :func:`seam_folders` for the root of ``codeowners``.
    """
    sources = source_of(seam, folders)
    if not sources:
        yield OwnedElsewhere(
            asked=f"the source of {seam.claim}, for {codeowners.file}",
            found=f"no {MANIFEST} below {codeowners.root} says name = {seam.name!r}",
            next=f"name it in [tool.{TABLE}.policy] external, or keep its source in this tree",
            subject=seam.name,
            file=str(seam.directory / MANIFEST),
            key="seam.owner",
        )
    for source in sources:
        taken: dict[int | None, tuple[tuple[Rule, ...], list[str]]] = {}
        for file in files_below(source):
            path = file.relative_to(codeowners.root).as_posix()
            rules = codeowners.matching(path)
            if not rules or not rules[0].names(seam.owner):
                line = rules[0].line if rules else None
                taken.setdefault(line, (rules, []))[1].append(path)
        for rules, paths in taken.values():
            yield _fault(seam, codeowners, source, rules, paths)


def _fault(
    seam: Seam, codeowners: Codeowners, source: Path, rules: tuple[Rule, ...], paths: list[str]
) -> SeamsError:
    listed = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    asked = f"{seam.owner} as the owner of {listed}, of {seam.claim}"
    folder = source.relative_to(codeowners.root)
    inside = "".join(f"{part}/" for part in folder.parts).replace(" ", "\\ ")
    line = f"/{inside} {seam.owner}" if inside else f"* {seam.owner}"
    if not rules:
        return OwnerMissing(
            asked=asked,
            found="no line matches",
            next=f"add the line `{line}`",
            subject=seam.name,
            file=str(codeowners.file),
        )
    last = rules[0]
    found = f"line {last.line}, `{' '.join([last.pattern, *last.owners])}`, the last that matches, "
    found += f"gives it to {' '.join(last.owners) or 'nobody'}"
    earlier = next((rule for rule in rules[1:] if rule.names(seam.owner)), None)
    if earlier is not None:
        return OwnerShadowed(
            asked=asked,
            found=f"{found}, and overrules line {earlier.line}, `{earlier.pattern}`",
            next=f"move line {earlier.line} below line {last.line}, or narrow line {last.line}",
            subject=seam.name,
            file=str(codeowners.file),
            line=last.line,
        )
    cause = OwnerDiffers if last.owners else OwnerMissing
    return cause(
        asked=asked,
        found=found,
        next=f"add the line `{line}` below it, or correct [seam] owner in {MANIFEST}",
        subject=seam.name,
        file=str(codeowners.file),
        line=last.line,
    )


def skipped_lines(codeowners: Codeowners) -> Iterator[SeamsError]:
    """The lines of CODEOWNERS that are skipped."""
    for number, reason in codeowners.skipped:
        yield CodeownersInvalid(
            asked="a line of CODEOWNERS that can be read",
            found=f"this one is skipped: {reason}",
            next="correct the line, or make it a comment",
            subject=codeowners.file.name,
            file=str(codeowners.file),
            line=number,
        )
