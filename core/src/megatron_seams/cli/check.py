"""``registry check``: the gate for continuous integration."""

from pathlib import Path

import click

from megatron_seams.cli.common import console, megatron_option, print_json, show_faults
from megatron_seams.environment import read_environment
from megatron_seams.gate import check
from megatron_seams.workspace import read_workspace

_STYLES = {"error": "bold red", "warning": "yellow"}


@click.command("check")
@click.option(
    "--workspace",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(),
    help="The workspace whose policy holds (default: the working directory's).",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print the verdicts.",
)
@megatron_option
@click.pass_context
def check_command(
    context: click.Context, workspace: Path, form: str, megatron: Path | None
) -> None:
    """Check the installed seams against the Megatron in hand and the workspace's policy.

    Exits with 1 on errors; warnings alone pass. A superseded seam is a warning while the range
    [tool.megatron-seams.policy] megatron-core has a release that needs it, and an error then.
    """
    gate = check(read_environment(megatron), read_workspace(workspace))
    if form == "json":
        print_json(gate.to_dict())
    else:
        for verdict in gate.verdicts:
            show_faults([verdict.finding], style=_STYLES[verdict.severity])
        errors = sum(verdict.severity == "error" for verdict in gate.verdicts)
        warnings = len(gate.verdicts) - errors
        console().print(f"check: {errors} errors, {warnings} warnings", markup=False)
    context.exit(gate.exit_code)
