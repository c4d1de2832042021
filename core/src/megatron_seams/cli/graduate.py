"""``registry graduate``: prove that native Megatron can load a seam's checkpoint."""

import datetime
from pathlib import Path

import click

from megatron_seams.cli.common import json_option, print_json
from megatron_seams.cli.complete import seams
from megatron_seams.cli.quiet import quiet_runtime
from megatron_seams.cli.screen import console
from megatron_seams.cli.smoke import require_runtime
from megatron_seams.errors import ExitCode, Refusal
from megatron_seams.planning.environment import Environment, read_environment
from megatron_seams.records.graduation import (
    LOGITS_BAR,
    LOSS_BAR,
    Graduation,
    find_candidate,
    write_report,
)
from megatron_seams.records.proof import read_proof
from megatron_seams.seams.removal import how_to_remove


@click.command("graduate", short_help="Prove that native can replace a seam.")
@click.argument("name", shell_complete=seams)
@click.option(
    "--from",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The folder of `registry smoke --save DIR`, run on a Megatron that needs the seam.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    metavar="FILE",
    help="Where to write the comparison (default: DIR/graduation-NAME.json).",
)
@json_option
@click.pass_context
def graduate_command(
    context: click.Context, name: str, folder: Path, report: Path | None, as_json: bool
) -> None:
    """Prove that native Megatron can replace seam NAME, or list the differences.

    Loads the seam's checkpoint into the native model of the importable Megatron and compares keys,
    shapes, loss and logits. Only if all are equal is the seam called deletable.
    """
    environment = read_environment()
    candidate = find_candidate(name, read_proof(folder), environment)
    require_runtime(candidate.plan)
    with quiet_runtime():
        from megatron_seams.runtime.graduation import graduate

        graduation = graduate(candidate)
    today = datetime.datetime.now(datetime.UTC).date()
    file = report or folder / f"graduation-{name}.json"
    write_report(graduation, file, today)
    refusal = Refusal(graduation.reasons) if graduation.reasons else None
    if as_json:
        print_json(graduation.to_dict(today))
        context.exit(refusal.exit_code if refusal else ExitCode.OK)
    _print(graduation, file)
    if refusal is not None:
        raise refusal
    _print_next(graduation, environment)


def _print(graduation: Graduation, file: Path) -> None:
    candidate, keys, numbers = graduation.candidate, graduation.keys, graduation.numbers
    out = console()
    out.print(
        f"seam {candidate.name}, megatron-core {candidate.proof.megatron_core} -> native in "
        f"{candidate.plan.surface.version}, layers "
        f"{', '.join(str(position) for position in sorted(candidate.layers))}",
        style="bold",
        markup=False,
    )
    differing = len(keys.missing) + len(keys.unexpected) + len(keys.different)
    out.print(f"keys     {keys.compared} compared, {differing} differ", markup=False)
    if numbers is not None:
        out.print(
            f"loss     {numbers.loss_saved:.9f} -> {numbers.loss_native:.9f}, difference "
            f"{numbers.loss_difference:.1e} (at most {LOSS_BAR:.0e})",
            markup=False,
        )
        out.print(
            f"logits   greatest difference {numbers.logits_difference:.1e} (at most "
            f"{LOGITS_BAR:.0e}) over {numbers.tokens} tokens",
            markup=False,
        )
    out.print(f"report   {file}", markup=False)


def _print_next(graduation: Graduation, environment: Environment) -> None:
    name = graduation.candidate.name
    seam = next((seam for seam in environment.discovery.seams if seam.name == name), None)
    advice = (
        how_to_remove(seam, environment.distributions)
        if seam
        else "it is not installed here any more"
    )
    console().print(f"seam {name} is deletable: {advice}", style="bold green", markup=False)
