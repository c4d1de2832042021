"""The receipts that a workspace holds, and the recipe that each is of."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from megatron_seams.errors import SeamsError, WorkspaceInvalid
from megatron_seams.governance.workspace import Workspace
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.records.receipt import read_receipt
from megatron_seams.records.verify import recipe_differences


def committed_receipts(workspace: Workspace) -> Iterator[tuple[Path, Recipe]]:
    """The committed receipts that can be read, each with the recipe in it."""
    with contextlib.suppress(WorkspaceInvalid):
        for file in workspace.committed("receipts"):
            with contextlib.suppress(SeamsError):
                yield file, read_receipt(file)[1]


def recipe_now(file: Path, kept: Recipe, recipes: list[tuple[str, Recipe]]) -> Recipe | None:
    """The committed recipe of a receipt: of its file's name, or else of its model's."""
    named = [recipe for stem, recipe in recipes if stem == file.stem]
    named = named or [it for _, it in recipes if it.model.name == kept.model.name]
    same = (recipe for recipe in named if not any(recipe_differences(kept, recipe)))
    return next(same, named[0] if named else None)
