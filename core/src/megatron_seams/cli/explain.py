"""``registry explain``: why a token or family has its provider, and what would change that."""

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console

from megatron_seams.cli.common import megatron_option
from megatron_seams.cli.screen import console, draw_wrapped
from megatron_seams.errors import Refusal, SeamsError, UnknownToken
from megatron_seams.families import Family
from megatron_seams.planning.choice import Chooser
from megatron_seams.planning.environment import Environment, read_environment
from megatron_seams.planning.requests import read_pattern
from megatron_seams.recipes.dialect import BUILT_IN
from megatron_seams.recipes.recipe import Recipe, load_recipe
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.surface import NativeSymbol


# A token may be "-" or "*"; neither is an option.
@click.command(
    "explain",
    short_help="Why a token, family or seam resolves so.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("what", metavar="TOKEN|FAMILY")
@click.option(
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Explain it under this recipe's choices.",
)
@megatron_option
def explain(what: str, recipe_path: Path | None, megatron: Path | None) -> None:
    """Explain a token, in each dialect, or a family."""
    environment = read_environment(megatron)
    recipe = load_recipe(recipe_path) if recipe_path else None
    out = console()
    families = list(_families(what, environment, recipe, lambda line: _say(out, line)))
    if not families:
        raise Refusal([_unknown(what, environment)], environment.findings)
    silent = recipe or Recipe.of_pattern("", dialect="megatron", depth=None)
    chooser = Chooser(
        environment=environment, preferences=silent.preferences, today=datetime.date.today()
    )
    for family in families:
        for line in _story(family, environment, chooser):
            _say(out, line)


def _say(out: Console, line: str) -> None:
    """Print a line of the story; a next step stays one line, to be copied."""
    text = line.lstrip(" ")
    draw_wrapped(out, text, indent=len(line) - len(text), hanging=2)


def _families(
    what: str, environment: Environment, recipe: Recipe | None, say: Callable[[str], None]
) -> Iterator[Family]:
    known = environment.families
    if len(what) != 1:
        if what in known:
            yield known[what]
        return
    dialects = list(BUILT_IN.values())
    if recipe is not None:
        dialects = [read_pattern(recipe)[1]]
    seen: set[str] = set()
    for dialect in dialects:
        family = dialect.family_of(what, ())
        if isinstance(family, SeamsError):
            say(f"dialect {dialect.name}: {what} is refused: {family.found}")
            continue
        target = recipe.families.get(family, family) if recipe else family
        note = f", which the recipe specialises as {target}" if target != family else ""
        say(f"dialect {dialect.name}: {what} is {family}{note}")
        if target not in seen:
            seen.add(target)
            yield known.get(target, Family(name=target, summary="No one here knows this family."))


def _story(family: Family, environment: Environment, chooser: Chooser) -> Iterator[str]:
    yield f"{family.name} ({family.kind}): {family.summary}"
    choice = chooser.choose(family.name, of_layer=family.kind == "block")
    if isinstance(choice, SeamsError):
        yield f"  refused [{choice.code}]: {choice.found}"
    elif isinstance(choice.provider, NativeSymbol):
        yield (
            f"  megatron-core {environment.surface.version}: {choice.why}, "
            f"in slot {choice.provider.slot}"
        )
    else:
        yield f"  {choice.why}"
    for seam in environment.discovery.seams:
        if seam.family == family.name:
            yield from _of_seam(seam, environment)
    yield f"  what would change it: {_change(family, environment, choice)}"


def _of_seam(seam: Seam, environment: Environment) -> Iterator[str]:
    upstream = seam.manifest.upstream
    retired = environment.superseded_by(seam)
    yield f"  {seam.claim}"
    if upstream.accepts:
        state = f"and this Megatron has it ({retired})" if retired else "which is not in it yet"
        yield f"    upstream fallback: native; {upstream.accepts} retires it, {state}"
    else:
        yield "    upstream fallback: refuse; nothing upstream is accepted in its place"
    yield f"    review by {seam.manifest.seam.review_by}"
    for reference in upstream.references:
        yield f"    upstream's work: {reference.line}"
    if not upstream.references:
        yield "    upstream's work: the manifest names none"
    fault = environment.out_of_range(seam)
    if fault is not None:
        yield f"    broken [{fault.code}]: {fault.found}"


def _change(family: Family, environment: Environment, choice: object) -> str:
    if isinstance(choice, SeamsError):
        return choice.next
    native = environment.surface.of_family(family.name)
    if native is not None:
        return (
            f'only [[override]] family = "{family.name}" in a recipe, with a seam, a reason and '
            "a date; or a Megatron that no longer builds it"
        )
    return "a Megatron that builds it, a second seam (refused until one is pinned), or removing it"


def _unknown(what: str, environment: Environment) -> UnknownToken:
    return UnknownToken(
        asked=f"what {what!r} is",
        found=f"no dialect has that token and no family that name; the families are "
        f"{', '.join(environment.families)}",
        next="run `registry list`, or give --recipe for a token that only a recipe maps",
        subject=what,
    )
