"""``registry preview``: the changes that an upgrade of Megatron brings."""

import os
from pathlib import Path

import click

from megatron_seams.base.wording import numbered
from megatron_seams.cli.common import (
    json_option,
    megatron_option,
    print_json,
    show_faults,
)
from megatron_seams.cli.complete import files
from megatron_seams.cli.models import recipe_of
from megatron_seams.cli.rows import Row, draw_rows
from megatron_seams.cli.screen import console, draw_wrapped
from megatron_seams.cli.usage import TokensCommand
from megatron_seams.errors import ExitCode, Refusal
from megatron_seams.governance.preview import Preview, RecipeChange, preview
from megatron_seams.governance.workspace import read_workspace
from megatron_seams.planning.environment import read_environment

_STYLES = {
    "graduates": "cyan",
    "breaks": "bold red",
    "needed again": "yellow",
    "superseded": "dim",
    "stays": "green",
}


@click.command(
    "preview",
    short_help="What another Megatron would change.",
    cls=TokensCommand,
)
@click.argument("other", metavar="WHEEL|PATH", type=click.Path(path_type=Path))
@click.argument("models", metavar="[RECIPE|PATTERN|config.json]...", nargs=-1, shell_complete=files)
@json_option
@megatron_option
@click.pass_context
def preview_command(
    context: click.Context,
    other: Path,
    models: tuple[str, ...],
    as_json: bool,
    megatron: Path | None,
) -> None:
    """Show what the Megatron at WHEEL|PATH changes: which seams graduate, break or stay.

    For each recipe it lists the layers that would resolve differently; without one, for those of
    the workspace. Exits with 1 when something needs a person. The Megatron is read, not installed
    or imported.
    """
    before, after = read_environment(megatron), read_environment(other)
    faults = (*before.faults, *after.faults)
    if faults:
        raise Refusal(faults)
    if not models:
        workspace = read_workspace(Path())
        held = {*workspace.files("recipes")} - {*workspace.files("refused")}
        models = tuple(os.path.relpath(file) for file in sorted(held))
    recipes = [(model, recipe_of(model, None, None)) for model in models]
    found = preview(before, after, recipes)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)
        show_faults(after.discovery.findings, style="yellow")
    context.exit(ExitCode.FINDINGS if found.needs_person else ExitCode.OK)


def _print(found: Preview) -> None:
    out = console()
    out.print(
        f"megatron-core {found.before.surface.version} -> {found.after.surface.version}",
        style="bold",
        markup=False,
    )
    rows = [
        Row(
            cells=[change.seam.name, change.seam.owner, change.state],
            prose=change.why,
            styles={2: _STYLES[change.state]},
        )
        for change in found.seams
    ]
    draw_rows(out, ("seam", "owner", "becomes", "why"), rows)
    for recipe in found.recipes:
        _print_recipe(recipe)
    if not found.recipes:
        out.print("no recipe was looked at: name one, or run this in its workspace")
    out.print("something needs a person" if found.needs_person else "nothing needs a person")


def _print_recipe(recipe: RecipeChange) -> None:
    out = console()
    if recipe.refused_after:
        again = " (as it is now)" if recipe.refused_before else ""
        out.print(f"{recipe.name}: would be refused{again}", style="bold red", markup=False)
        show_faults(recipe.refused_after, style="red")
        return
    if not recipe.layers:
        out.print(f"{recipe.name}: no layer changes", markup=False)
        return
    out.print(f"{recipe.name}:", style="bold", markup=False)
    for change in recipe.layers:
        told = f"{numbered('layer', change.positions)}: {change.was} -> {change.now}"
        draw_wrapped(out, told, indent=2, hanging=2)
