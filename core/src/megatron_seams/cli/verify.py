"""``registry verify``: compare an environment with a receipt."""

from pathlib import Path

import click

from megatron_seams.cli.common import megatron_option
from megatron_seams.cli.models import recipe_of, recipe_option
from megatron_seams.cli.screen import console
from megatron_seams.errors import Refusal
from megatron_seams.planning.environment import read_environment
from megatron_seams.records.verify import verify


@click.command("verify", short_help="Hold this environment to a receipt.")
@click.argument("receipt", type=click.Path(path_type=Path))
@recipe_option
@megatron_option
def verify_command(receipt: Path, recipe: str | None, megatron: Path | None) -> None:
    """Check that this environment still makes exactly the plan of RECEIPT.

    Every difference is named: the Megatron, each seam's version and code, each layer and its stage;
    with --recipe each key of the recipe that has changed since.
    """
    now = None if recipe is None else recipe_of(recipe, None, None)
    differences = verify(receipt, read_environment(megatron), recipe=now)
    if differences:
        raise Refusal(differences)
    console().print(f"{receipt}: this environment makes the same plan", markup=False)
