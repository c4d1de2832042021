"""``[[justify]]`` of the committed recipes: why a seam stands where native Megatron does not."""

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path

import attrs

from megatron_seams.errors import Refusal, Unjustified, WorkspaceInvalid
from megatron_seams.governance.reviews import NOTICE
from megatron_seams.governance.workspace import Workspace
from megatron_seams.planning.environment import Environment
from megatron_seams.recipes.policy import Justification
from megatron_seams.recipes.recipe import Recipe, load_recipe


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
    file: Path, recipe: Recipe, environment: Environment, today: datetime.date
) -> Iterator[tuple[Unjustified, bool]]:
    """The experiments of a recipe without a reason, and the reasons whose date is past or near.

    Args:
        file: The recipe's file.
        recipe: The recipe.
        environment: The seams.
        today: The day.

    Yields:
        Each finding, and whether it is an error: a date that is only near is not.
    """
    entries = recipe.justify or ()
    justified = {entry.seam for entry in entries}
    for seam in environment.discovery.seams:
        used = seam.manifest.experiment and recipe.preferences.accepts(seam.name)
        if used and seam.name not in justified:
            yield (
                Unjustified(
                    asked=f"{file.name}: a reason for the experiment {seam.name}",
                    found=f"the recipe uses {seam.claim}, and no [[justify]] says why",
                    next="give one in the recipe: [[justify]] with "
                    f'seam = "{seam.name}", reason and review-by',
                    subject=seam.name,
                    file=str(file),
                    key="policy.experiments",
                ),
                True,
            )
    for number, entry in enumerate(entries):
        left = (entry.review_by - today).days
        if entry.review_by - today > NOTICE:
            continue
        when = f"it passed {-left} days ago" if left < 0 else f"it is in {left} days"
        finding = Unjustified(
            asked=f"{file.name}: a review of seam {entry.seam} by {entry.review_by}",
            found=f"{when}; the reason given: {entry.reason}",
            next="give the reason anew with a later review-by, or take the seam out of the recipe",
            subject=entry.seam,
            file=str(file),
            key=f"justify[{number}].review-by",
        )
        yield finding, left < 0
