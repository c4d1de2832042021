"""``registry explain``: why a name has its provider, and what would change that."""

from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from megatron_seams.cli.common import json_option, megatron_option, print_json, show_faults
from megatron_seams.cli.complete import files, names
from megatron_seams.cli.models import recipe_of
from megatron_seams.cli.screen import console, draw_wrapped
from megatron_seams.cli.usage import TokensCommand
from megatron_seams.errors import Refusal, SeamsError, UnknownToken
from megatron_seams.governance.explanation import Explanation, FamilyStory, SeamStory
from megatron_seams.governance.explanation import explain as explained
from megatron_seams.planning.environment import read_environment
from megatron_seams.upstream.surface import NativeSymbol


@click.command(
    "explain",
    short_help="Why a token, family or seam resolves so.",
    cls=TokensCommand,
)
@click.argument("what", metavar="TOKEN|FAMILY|SEAM|CONSTANT", shell_complete=names)
@click.option(
    "--recipe",
    "model",
    metavar="FILE",
    shell_complete=files,
    help="Explain it under this recipe's choices.",
)
@json_option
@megatron_option
def explain(what: str, model: str | None, as_json: bool, megatron: Path | None) -> None:
    """Explain a token in each dialect, a family, an installed seam, or a constant of upstream's.

    A constant is a name of upstream's Symbols class, DS_ATTENTION.
    """
    environment = read_environment(megatron)
    recipe = None if model is None else recipe_of(model, None, None)
    try:
        found = explained(what, environment, recipe)
    except UnknownToken as unknown:
        raise Refusal([unknown], environment.findings) from unknown
    if as_json:
        print_json(found.to_dict())
        return
    out = console()
    for line in _heading(found):
        draw_wrapped(out, line, hanging=2)
    for story in found.families:
        _draw(out, story, found.megatron_core)
    for seam in found.broken:
        draw_wrapped(
            out, f"seam {seam.name!r} of {seam.distribution} {seam.version}: broken", hanging=2
        )
        show_faults(seam.faults, style="yellow")


def _heading(found: Explanation) -> Iterator[str]:
    for it in found.spellings:
        if it.family is None:
            yield f"dialect {it.dialect}: {it.token} is refused: {it.refused}"
        else:
            note = f", which the recipe specialises as {it.specialised}" if it.specialised else ""
            yield f"dialect {it.dialect}: {it.token} is {it.family}{note}"
    symbol = found.symbol
    if symbol is not None and (symbol.constant == found.asked or symbol.family is None):
        told = f"megatron-core {found.megatron_core}: {symbol.constant} is {symbol.symbol!r}"
        family = symbol.family or "unmapped: core has no family for it"
        yield f"{told}, in slot {symbol.slot}, {family}"


def _draw(out: Console, story: FamilyStory, version: str | None) -> None:
    family, choice = story.family, story.choice
    draw_wrapped(out, f"{family.name} ({family.kind}): {family.summary}", hanging=2)
    if isinstance(choice, SeamsError):
        told = f"refused [{choice.code}]: {choice.found}"
    elif isinstance(choice.provider, NativeSymbol):
        told = f"megatron-core {version}: {choice.why}, in slot {choice.provider.slot}"
    else:
        told = choice.why
    draw_wrapped(out, told, indent=2, hanging=2)
    for seam in story.seams:
        first, *rest = _of_seam(seam)
        draw_wrapped(out, first, indent=2, hanging=2)
        for line in rest:
            draw_wrapped(out, line, indent=4, hanging=2)
    if isinstance(choice, SeamsError):
        out.print(f"  next: {story.change}", markup=False)  # to be copied
    else:
        draw_wrapped(out, f"what would change it: {story.change}", indent=2, hanging=2)


def _of_seam(story: SeamStory) -> Iterator[str]:
    seam = story.seam
    upstream = seam.manifest.upstream
    yield seam.claim
    if upstream.accepts:
        retired = story.retired_by
        state = f"and this Megatron has it ({retired})" if retired else "which is not in it yet"
        yield f"upstream fallback: native; {upstream.accepts} retires it, {state}"
    else:
        yield "upstream fallback: refuse; nothing upstream is accepted in its place"
    yield f"review by {seam.manifest.seam.review_by}"
    for reference in upstream.references:
        yield f"upstream's work: {reference.line}"
    if not upstream.references:
        yield "upstream's work: the manifest names none"
    if story.misfit is not None:
        yield f"broken [{story.misfit.code}]: {story.misfit.found}"
