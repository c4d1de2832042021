"""``registry check``: the gate for continuous integration."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from megatron_seams.base.files import real_path
from megatron_seams.base.wording import counted
from megatron_seams.cli.common import (
    megatron_option,
    print_json,
    refuse_as_json,
    show_faults,
)
from megatron_seams.cli.screen import console
from megatron_seams.cli.seen import write_commands
from megatron_seams.planning.environment import read_environment

if TYPE_CHECKING:
    from megatron_seams.governance.gate import Gate
    from megatron_seams.seams.discovery import Discovery
    from megatron_seams.seams.seam import Seam

_STYLES = {"error": "bold red", "warning": "yellow"}


@click.command("check", short_help="The gate for continuous integration.")
@click.argument("paths", metavar="[WHEEL|PATH]...", type=click.Path(path_type=Path), nargs=-1)
@click.option(
    "--codeowners",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Check owners against this file (default: the one that GitHub reads in the workspace).",
)
@click.option(
    "--workspace",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The workspace whose policy applies (default: that of the folders named, else the working "
    "directory's).",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github", "sarif"]),
    default="text",
    show_default=True,
    help="How to print the verdicts: for people, programs, GitHub's annotations or code scanning.",
)
@megatron_option
@click.pass_context
def check_command(
    context: click.Context,
    paths: tuple[Path, ...],
    codeowners: Path | None,
    workspace: Path | None,
    form: str,
    megatron: Path | None,
) -> None:
    """Check the installed seams, or those of source trees and wheels, as a gate.

    They are checked against the importable Megatron, CODEOWNERS, their review dates, and
    [tool.megatron-seams] in the workspace's pyproject.toml. Exits with 1 on errors; warnings alone
    pass. The last line says what was looked at. No plugin is imported. `registry docs check` lists
    the rules.
    """
    if form == "json":
        refuse_as_json(context)
    # Imported here, as no other command needs them.
    from megatron_seams.governance.codeowners import find_codeowners, read_codeowners
    from megatron_seams.governance.gate import check
    from megatron_seams.governance.workspace import read_workspace, workspace_of
    from megatron_seams.seams.discovery import gather, read_installed
    from megatron_seams.seams.source_trees import discover_in

    policy = read_workspace(workspace) if workspace else workspace_of(paths)
    root = policy.root or Path.cwd()
    owners = read_codeowners(codeowners) if codeowners else find_codeowners(root)
    whole = not paths or root in map(real_path, paths)
    discovery: Discovery | None = None
    beside: tuple[Seam, ...] = ()
    if paths:
        installed = tuple(read_installed()) if whole else ()
        external = [seam for seam in installed if seam.name in policy.policy.external]
        discovery = discover_in(paths, workspace=root, installed=external)
        beside = gather(seam for seam in installed if seam not in external).seams
    gate = check(
        read_environment(megatron, discovery=discovery),
        policy,
        codeowners=owners,
        whole=whole,
        beside=beside,
    )
    # Annotations name a file by its path from the repository's root, where CODEOWNERS is.
    _print(gate, form, owners.root if owners else root)
    context.exit(gate.exit_code)


def _print(gate: "Gate", form: str, root: Path) -> None:
    from megatron_seams.governance.formats import github, sarif

    if form == "json":
        print_json(gate.to_dict())
    elif form == "sarif":
        print_json(sarif(gate, root))
    elif form == "github":
        write_commands(github(gate, root))
        click.echo(f"looked at: {gate.scope}", err=True)  # standard output is commands alone
    else:
        for verdict in gate.verdicts:
            show_faults([verdict.finding], style=_STYLES[verdict.severity])
        errors = sum(verdict.severity == "error" for verdict in gate.verdicts)
        warnings = len(gate.verdicts) - errors
        console().print(
            f"check: {counted(errors, 'error')}, {counted(warnings, 'warning')}", markup=False
        )
        console().print(f"looked at: {gate.scope}", markup=False)
