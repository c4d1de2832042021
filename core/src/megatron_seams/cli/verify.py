"""``registry verify``: compare an environment with a receipt."""

from pathlib import Path
from typing import Final

import click

from megatron_seams.cli.common import held_software, json_option, megatron_option, print_json
from megatron_seams.cli.models import recipe_of, recipe_option
from megatron_seams.cli.near import refuse_missing_receipt
from megatron_seams.cli.screen import console
from megatron_seams.errors import ExitCode, Refusal
from megatron_seams.planning.environment import read_environment
from megatron_seams.records.software import software_since
from megatron_seams.records.verify import verify

SCHEMA: Final = 1


@click.command("verify", short_help="Compare this environment with a receipt.")
@click.argument("receipt", type=click.Path(path_type=Path))
@recipe_option
@json_option
@megatron_option
@click.pass_context
def verify_command(
    context: click.Context, receipt: Path, recipe: str | None, as_json: bool, megatron: Path | None
) -> None:
    """Check that this environment still makes exactly the plan of RECEIPT.

    Every difference is named: the Megatron, each seam's version and code, each layer and its stage;
    with --recipe each key of the recipe that has changed since. Other versions of megatron-seams,
    torch, Transformer Engine and mamba-ssm are shown as information and refuse nothing, but those
    that the receipt or the workspace holds (hold-software in its policy) are differences.
    """
    refuse_missing_receipt(receipt)
    now = None if recipe is None else recipe_of(recipe, None, None)
    differences = verify(
        receipt, read_environment(megatron), recipe=now, hold_software=held_software()
    )
    refusal = Refusal(differences) if differences else None
    changed = software_since(receipt)
    if as_json:
        print_json(
            {
                "schema": SCHEMA,
                "outcome": "differs" if differences else "same",
                "receipt": str(receipt),
                "differences": [difference.to_dict() for difference in differences],
                "software": changed,
            }
        )
        context.exit(refusal.exit_code if refusal else ExitCode.OK)
    named = {difference.key for difference in differences}
    for name, (was, here) in changed.items():
        if f"software.{name}" in named:
            continue
        shown = f"{name}: {was or 'none'} when the receipt was written, {here or 'none'} here"
        console().print(f"{shown} (information)", markup=False)
    if refusal is not None:
        raise refusal
    console().print(f"{receipt}: this environment makes the same plan", markup=False)
