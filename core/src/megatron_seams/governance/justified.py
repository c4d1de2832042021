"""``[[justify]]`` of the committed recipes: why a seam stands where native Megatron does not."""

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from megatron_seams.errors import Refusal, Unjustified, WorkspaceInvalid
from megatron_seams.governance.reviews import NOTICE, how_far
from megatron_seams.governance.workspace import Workspace
from megatron_seams.planning.environment import Environment
from megatron_seams.recipes.policy import Justification
from megatron_seams.recipes.recipe import Recipe, load_recipe

#: What follows a change of a receipt's recipe.
_ACCEPTED: Final = "; then registry accept RECEIPT --recipe RECIPE --reason TEXT"


@attrs.frozen(kw_only=True)
class Justified:
    """A justification of a committed recipe.

    Attributes:
        recipe: The recipe's file.
        entry: The ``[[justify]]`` entry.
    """

    recipe: Path
    entry: Justification


def committed_recipes(workspace: Workspace) -> list[tuple[Path, Recipe]]:
    """The committed recipes that can be read, each with its file; `check` reports the others."""
    found: list[tuple[Path, Recipe]] = []
    for key in ("recipes", *(["refused"] if workspace.holds.refused else [])):
        with contextlib.suppress(WorkspaceInvalid):
            for file in workspace.committed(key):
                with contextlib.suppress(Refusal):
                    found.append((file, load_recipe(file)))
    return found


def justifications(workspace: Workspace) -> dict[str, tuple[Justified, ...]]:
    """Seam name -> its justifications in the committed recipes."""
    found: dict[str, dict[Path, Justified]] = {}
    for file, recipe in committed_recipes(workspace):
        for entry in recipe.justify or ():
            found.setdefault(entry.seam, {})[file] = Justified(recipe=file, entry=entry)
    return {name: tuple(entries.values()) for name, entries in found.items()}


def unjustified(
    file: Path,
    recipe: Recipe,
    environment: Environment,
    today: datetime.date,
    *,
    kept: bool = False,
) -> Iterator[tuple[Unjustified, bool]]:
    """The experiments of a recipe without a reason, and the reasons whose date is past or near.

    Args:
        file: The recipe's file.
        recipe: The recipe.
        environment: The seams.
        today: The day.
        kept: Whether ``file`` is a receipt with the recipe in it.

    Yields:
        Each finding, and whether it is an error: a date that is only near is not.
    """
    entries = recipe.justify or ()
    justified = {entry.seam for entry in entries}
    table, after = ("request.", _ACCEPTED) if kept else ("", "")
    for seam in environment.discovery.seams:
        used = seam.manifest.experiment and recipe.preferences.accepts(seam.name)
        if used and seam.name not in justified:
            yield (
                Unjustified(
                    asked=f"{file.name}: a reason for the experiment {seam.name}",
                    found=f"the recipe uses {seam.claim}, and no [[justify]] says why",
                    next="give one in the recipe: [[justify]] with "
                    f'seam = "{seam.name}", reason and review-by{after}',
                    subject=seam.name,
                    file=str(file),
                    key=table + _named(recipe, seam.name),
                ),
                True,
            )
    for number, entry in enumerate(entries):
        if entry.review_by - today > NOTICE:
            continue
        finding = Unjustified(
            asked=f"{file.name}: a review of seam {entry.seam} by {entry.review_by}",
            found=f"{how_far(entry.review_by, today)}; the reason given: {entry.reason_line}",
            next="give the reason anew with a later review-by, or take the seam out of the recipe"
            f"{after}",
            subject=entry.seam,
            file=str(file),
            key=f"{table}justify[{number}].review-by",
        )
        yield finding, entry.review_by < today


def _named(recipe: Recipe, experiment: str) -> str:
    """The key of a recipe that names an experiment which it accepts."""
    if experiment in recipe.policy.experiments:
        return "policy.experiments"
    pinned = [family for family, name in recipe.policy.pin.items() if name == experiment]
    if pinned:
        return f"policy.pin.{pinned[0]}"
    taken = [number for number, entry in enumerate(recipe.override) if entry.seam == experiment]
    return f"override[{taken[0]}].seam"
