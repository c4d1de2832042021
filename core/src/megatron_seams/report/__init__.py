"""The audit as one HTML page: the families, the seams with their owners, the models' layer strips.

The page is one file and loads nothing from the network. Texts of manifests and recipes are escaped,
so that they can never be markup.
"""

import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2

from megatron_seams.governance.audit import audit
from megatron_seams.planning.environment import Environment
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.report.cards import Card, cards_of
from megatron_seams.report.strips import LEGEND, Strip, strip_of

__all__ = ["Card", "Strip", "render"]

_HERE = Path(__file__).parent


def render(
    environment: Environment,
    recipes: Iterable[tuple[str, Recipe]] = (),
    *,
    today: datetime.date | None = None,
) -> str:
    """The page as text.

    Args:
        environment: The Megatron and the seams.
        recipes: Name and recipe of each model to draw as a strip.
        today: The day that decides which dates have passed; the system's by default.
    """
    day = today or datetime.date.today()
    found = audit(environment, today=day)
    strips = [strip_of(name, recipe, environment, day) for name, recipe in recipes]
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return engine.get_template("page.html").render(
        audit=found,
        version=environment.surface.version,
        cards=cards_of(found, day),
        strips=strips,
        legend=_present(strips),
        today=day,
    )


def _present(strips: Sequence[Strip]) -> list[tuple[str, str]]:
    """The states that occur in the strips, with their meanings."""
    states = {cell.state for strip in strips for cell in strip.cells}
    return [(state, meaning) for state, meaning in LEGEND.items() if state in states]
