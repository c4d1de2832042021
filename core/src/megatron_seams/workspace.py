"""What a workspace says of itself: ``[tool.megatron-seams]`` in its root ``pyproject.toml``."""

import tomllib
from pathlib import Path
from typing import Any

import attrs
from attrs import field, validators
from packaging.specifiers import SpecifierSet

from megatron_seams.checks import specifier
from megatron_seams.errors import Refusal, WorkspaceInvalid
from megatron_seams.strict import structure

TABLE = "megatron-seams"


@attrs.frozen(kw_only=True)
class WorkspacePolicy:
    """``[tool.megatron-seams.policy]``.

    Attributes:
        megatron_core: The releases that are still trained on here, ``>=0.17,<0.20``.
    """

    megatron_core: str | None = field(default=None, validator=validators.optional(specifier))

    @property
    def range(self) -> SpecifierSet | None:
        """The releases as packaging compares them; None where nothing is said."""
        return None if self.megatron_core is None else SpecifierSet(self.megatron_core)


@attrs.frozen(kw_only=True)
class Workspace:
    """The whole table.

    Attributes:
        policy: Its ``policy``.
    """

    policy: WorkspacePolicy = field(factory=WorkspacePolicy)


def read_workspace(folder: Path) -> Workspace:
    """The workspace of ``folder``: the nearest ``pyproject.toml`` above it that has the table.

    Returns:
        An empty one where there is none.

    Raises:
        Refusal: The table has a wrong key or value, or the file cannot be read.
    """
    for parent in (folder.resolve(), *folder.resolve().parents):
        file = parent / "pyproject.toml"
        if file.is_file():
            table = _table(file)
            if table is not None:
                return _structured(table, file)
    return Workspace()


def _table(file: Path) -> dict[str, Any] | None:
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Refusal([_invalid(file, str(error), None)]) from error
    tools = found.get("tool", {})
    table = tools.get(TABLE) if isinstance(tools, dict) else None
    return table if table is None or isinstance(table, dict) else {"": table}


def _structured(table: dict[str, Any], file: Path) -> Workspace:
    workspace, faults = structure(Workspace, table)
    if workspace is None:
        raise Refusal(
            _invalid(file, fault.message, f"tool.{TABLE}.{fault.key}".rstrip("."))
            for fault in faults
        )
    return workspace


def _invalid(file: Path, found: str, key: str | None) -> WorkspaceInvalid:
    return WorkspaceInvalid(
        asked=f"a valid [tool.{TABLE}] table",
        found=found,
        next="mend the key (docs/upgrade.md lists them all)",
        file=str(file),
        key=key,
    )
