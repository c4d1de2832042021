"""A workspace's settings: ``[tool.megatron-seams]`` in its root ``pyproject.toml``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from attrs import field, validators
from packaging.specifiers import SpecifierSet

from megatron_seams.base.structure import structure
from megatron_seams.base.toml import TomlError, read_toml
from megatron_seams.base.validators import specifier
from megatron_seams.errors import Refusal, WorkspaceInvalid

TABLE = "megatron-seams"
_PROJECT = "pyproject.toml"


@attrs.frozen(kw_only=True)
class WorkspacePolicy:
    """``[tool.megatron-seams.policy]``.

    Attributes:
        megatron_core: The releases that are still trained on here, ``>=0.17,<0.20``.
        allow: The seams that may be used here; None allows every one.
        require_codeowners: Whether every seam's source lies in the tree of CODEOWNERS.
    """

    megatron_core: str | None = field(default=None, validator=validators.optional(specifier))
    allow: tuple[str, ...] | None = None
    require_codeowners: bool = False

    @property
    def range(self) -> SpecifierSet | None:
        """``megatron_core`` as a parsed version range; None where it is not set."""
        return None if self.megatron_core is None else SpecifierSet(self.megatron_core)


@attrs.frozen(kw_only=True)
class Holds:
    """``[tool.megatron-seams.holds]``: committed files that the gate checks, as globs.

    Attributes:
        recipes: Recipes that must resolve.
        refused: Recipes that must be refused.
        receipts: Receipts that must verify.
    """

    recipes: tuple[str, ...] | None = None
    refused: tuple[str, ...] = ()
    receipts: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True)
class _Table:
    policy: WorkspacePolicy = field(factory=WorkspacePolicy)
    holds: Holds = field(factory=Holds)


@attrs.frozen(kw_only=True)
class Workspace:
    """The settings of a workspace.

    Attributes:
        policy: The table ``policy``.
        holds: The table ``holds``.
        root: The folder of the ``pyproject.toml`` that has them; None without one.
    """

    policy: WorkspacePolicy = field(factory=WorkspacePolicy)
    holds: Holds = field(factory=Holds)
    root: Path | None = None

    @property
    def file(self) -> Path | None:
        """The ``pyproject.toml`` that has the table."""
        return None if self.root is None else self.root / _PROJECT

    def committed(self, key: str) -> Iterator[Path]:
        """The files that the globs of ``holds.KEY`` match, sorted; ``KEY/*`` where it is not set.

        Raises:
            WorkspaceInvalid: A glob of the table matches no file.
        """
        globs: tuple[str, ...] | None = getattr(self.holds, key)
        suffix = "json" if key == "receipts" else "toml"
        if self.root is None or self.file is None:
            return
        found: set[Path] = set()
        for glob in (f"{key}/*.{suffix}",) if globs is None else globs:
            try:
                files = {file for file in self.root.glob(glob) if file.is_file()}
            except (ValueError, NotImplementedError):  # empty, or from the root of the machine
                files = set()
            if globs is not None and not files:
                raise _invalid(self.file, f"{glob!r} names no file", f"tool.{TABLE}.holds.{key}")
            found |= files
        yield from sorted(found)


def read_workspace(folder: Path) -> Workspace:
    """The workspace of ``folder``, from the nearest ``pyproject.toml`` above that has the table.

    Returns:
        The workspace; one with default settings where there is none.

    Raises:
        Refusal: The table has a wrong key or value, or the file cannot be read.
    """
    for parent in (folder.resolve(), *folder.resolve().parents):
        file = parent / _PROJECT
        if file.is_file():
            table = _table(file)
            if table is not None:
                return _structured(table, file)
    return Workspace()


def _table(file: Path) -> dict[str, Any] | None:
    try:
        found = read_toml(file)
    except TomlError as error:
        raise Refusal([_invalid(file, str(error), None)]) from error
    tools = found.get("tool", {})
    table = tools.get(TABLE) if isinstance(tools, dict) else None
    return table if table is None or isinstance(table, dict) else {"": table}


def _structured(table: dict[str, Any], file: Path) -> Workspace:
    found, faults = structure(_Table, table)
    if found is None:
        raise Refusal(
            _invalid(file, fault.message, f"tool.{TABLE}.{fault.key}".rstrip("."))
            for fault in faults
        )
    return Workspace(policy=found.policy, holds=found.holds, root=file.parent)


def _invalid(file: Path, found: str, key: str | None) -> WorkspaceInvalid:
    return WorkspaceInvalid(
        asked=f"a valid [tool.{TABLE}] table",
        found=found,
        next="correct the key",
        file=str(file),
        key=key,
    )
