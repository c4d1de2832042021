"""``registry report``: the audit as one HTML page."""

from pathlib import Path

import click

from megatron_seams.base.files import replace_text
from megatron_seams.cli.common import megatron_option, not_written, show_faults
from megatron_seams.cli.complete import files
from megatron_seams.cli.models import recipe_of
from megatron_seams.cli.screen import console
from megatron_seams.cli.seen import seen
from megatron_seams.cli.usage import TokensCommand
from megatron_seams.errors import ExitCode, Refusal
from megatron_seams.governance.codeowners import find_codeowners
from megatron_seams.governance.workspace import read_workspace
from megatron_seams.planning.environment import read_environment
from megatron_seams.recipes.recipe import Recipe, load_recipe
from megatron_seams.report import render


@click.command(
    "report",
    short_help="Write the audit as one HTML page.",
    cls=TokensCommand,
)
@click.argument("models", metavar="[RECIPE|PATTERN|config.json]...", nargs=-1, shell_complete=files)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    default=Path("seams.html"),
    show_default=True,
    metavar="FILE",
    help="Where to write the page.",
)
@megatron_option
@click.pass_context
def report_command(
    context: click.Context, models: tuple[str, ...], out: Path, megatron: Path | None
) -> None:
    """Write the audit as one HTML page: a verdict, each model's layers, seams, families, records.

    Without a model it shows the workspace's recipes. The page loads nothing from the network, and
    no plugin is imported to make it. Exits with 3 where no Megatron can be read, so that nothing on
    the page is native.
    """
    workspace = read_workspace(Path())
    recipes: list[tuple[str, Recipe | Refusal]]
    if models:
        recipes = [(Path(model).name, recipe_of(model, None, None)) for model in models]
    else:
        files = workspace.files("recipes", "refused")
        recipes = [(file.name, _recipe(file)) for file in files]
    environment = read_environment(megatron)
    page = render(
        environment,
        recipes,
        workspace=workspace,
        codeowners=find_codeowners(workspace.root or Path()),
        page=out,
    )
    try:
        replace_text(out, seen(page))
    except OSError as error:
        raise not_written(out, error, "--out") from error
    show_faults(environment.faults, style="bold red")
    console().print(f"report: {out}", markup=False)
    context.exit(max((it.exit_code for it in environment.faults), default=ExitCode.OK))


def _recipe(file: Path) -> Recipe | Refusal:
    """A recipe of the workspace; where it cannot be read, why: the page shows it as refused."""
    try:
        return load_recipe(file)
    except Refusal as refusal:
        return refusal
