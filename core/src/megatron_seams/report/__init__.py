"""The audit as one HTML page: a verdict, the models' layer strips, the seams, families and records.

The page is one file and loads nothing from the network. Texts of manifests and recipes are escaped,
so that they can never be markup.
"""

import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import jinja2

from megatron_seams.base.wording import counted
from megatron_seams.errors import Refusal
from megatron_seams.governance.audit import audit
from megatron_seams.governance.codeowners import Codeowners
from megatron_seams.governance.gate import check
from megatron_seams.governance.workspace import Workspace
from megatron_seams.planning.environment import Environment
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.report.cards import Card, cards_of
from megatron_seams.report.kept import records_of
from megatron_seams.report.links import Link, OwnerLines
from megatron_seams.report.strips import LEGEND, Strip, strip_of
from megatron_seams.report.verdict import Verdict

__all__ = ["Card", "Strip", "render"]

_HERE = Path(__file__).parent
#: The colours of families; a further family begins again at the first.
_COLOURS: Final = 10


def render(
    environment: Environment,
    recipes: Iterable[tuple[str, Recipe | Refusal]] = (),
    *,
    today: datetime.date | None = None,
    workspace: Workspace | None = None,
    codeowners: Codeowners | None = None,
    page: Path | None = None,
) -> str:
    """The page as text.

    Args:
        environment: The Megatron and the seams.
        recipes: Name and recipe of each model to draw as a strip; a refusal for one that cannot be
            read.
        today: The day that decides which dates have passed; the system's by default.
        workspace: The workspace whose checks, receipts and proofs are shown; none by default.
        codeowners: Its CODEOWNERS.
        page: The page's file, for links to files of the workspace; without it there are none.
    """
    day = today or datetime.date.today()
    found = audit(environment, today=day)
    strips = [strip_of(name, recipe, environment, day) for name, recipe in recipes]
    strips.sort(key=lambda strip: not strip.reasons)
    used: dict[str, list[tuple[Link, int]]] = {}
    for number, strip in enumerate(strips, start=1):
        for name, layers in strip.seams.items():
            used.setdefault(name, []).append((Link(strip.name, f"#model-{number}"), layers))
    lines = OwnerLines(codeowners=codeowners, page=page).of(environment.discovery.seams)
    cards = cards_of(found, day, used_by=used, owner_lines=lines)
    gate = None
    if workspace is not None:
        gate = check(environment, workspace, codeowners=codeowners, today=day)
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    engine.filters["counted"] = counted
    return engine.get_template("page.html").render(
        audit=found,
        version=environment.surface.version,
        verdict=Verdict.of(strips, cards, gate),
        gate=gate,
        cards=cards,
        strips=strips,
        records=records_of(workspace, environment, day, page) if workspace else (),
        legend=_present(strips),
        shades=_shades(strips),
        today=day,
    )


def _present(strips: Sequence[Strip]) -> list[tuple[str, str]]:
    """The states that occur in the strips, with their meanings."""
    states = {cell.state for strip in strips for cell in strip.cells}
    return [(state, meaning) for state, meaning in LEGEND.items() if state in states]


def _shades(strips: Sequence[Strip]) -> dict[str, int]:
    """Family -> the number of its colour, for the families that occur in the strips."""
    drawn = [(*strip.cells, *(strip.mtp.cells if strip.mtp else ())) for strip in strips]
    families = sorted({cell.family for cells in drawn for cell in cells} - {""})
    return {family: number % _COLOURS for number, family in enumerate(families)}
