"""``registry verify``: compare an environment with a receipt."""

from pathlib import Path

import click

from megatron_seams.cli.common import console, megatron_option
from megatron_seams.errors import Refusal
from megatron_seams.planning.environment import read_environment
from megatron_seams.records.verify import verify


@click.command("verify")
@click.argument("receipt", type=click.Path(path_type=Path))
@megatron_option
def verify_command(receipt: Path, megatron: Path | None) -> None:
    """Check that this environment still makes exactly the plan of RECEIPT.

    Every difference is named: the Megatron, each seam's version, owner and code, each layer.
    """
    differences = verify(receipt, read_environment(megatron))
    if differences:
        raise Refusal(differences)
    console().print(f"{receipt}: this environment makes the same plan", markup=False)
