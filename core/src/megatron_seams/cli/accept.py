"""``registry accept``: rewrite a receipt to a changed plan, with who accepted it and why."""

import datetime
import getpass
import shutil
import subprocess
from pathlib import Path
from typing import Final

import click

from megatron_seams.base.wording import counted, numbered
from megatron_seams.cli.common import held_software, json_option, megatron_option, print_json
from megatron_seams.cli.models import recipe_of, recipe_option
from megatron_seams.cli.near import refuse_missing_receipt
from megatron_seams.cli.screen import console
from megatron_seams.errors import AcceptanceInvalid
from megatron_seams.planning.environment import read_environment
from megatron_seams.records.accept import Acceptance, accept

SCHEMA: Final = 1


@click.command("accept", short_help="Take a changed plan into its receipt.")
@click.argument("receipt", type=click.Path(path_type=Path))
@click.option("--reason", required=True, metavar="TEXT", help="Why the change is right.")
@click.option("--by", metavar="WHO", help="Who accepts (default: git's user, else the login name).")
@recipe_option
@json_option
@megatron_option
def accept_command(
    receipt: Path,
    reason: str,
    by: str | None,
    recipe: str | None,
    as_json: bool,
    megatron: Path | None,
) -> None:
    """Rewrite RECEIPT to the plan that this environment makes, and record who, why and what.

    The record keeps the old digest and every difference; with --recipe the plan is that of the
    recipe as it is now. A receipt without a difference is not touched.
    """
    try:
        acceptance = Acceptance(
            by=by or _user(), reason=reason, when=datetime.datetime.now(datetime.UTC).date()
        )
    except ValueError as error:
        raise AcceptanceInvalid(
            asked=f"who accepts {receipt}, and why",
            found=str(error),
            next="say it: registry accept RECEIPT --reason 'the native layer has the same "
            "numbers', and --by WHO where neither git nor the system has a name",
            file=str(receipt),
        ) from error
    refuse_missing_receipt(receipt)
    now = None if recipe is None else recipe_of(recipe, None, None)
    accepted = accept(
        receipt,
        read_environment(megatron),
        acceptance,
        recipe=now,
        hold_software=held_software(),
    )
    if as_json:
        print_json(
            {
                "schema": SCHEMA,
                "outcome": "accepted" if accepted else "unchanged",
                "receipt": str(receipt),
                "by": acceptance.by,
                "reason": acceptance.reason,
                "date": acceptance.when.isoformat(),
                "differences": [difference.to_dict() for difference in accepted],
            }
        )
        return
    out = console()
    for difference in accepted:
        positions = difference.positions
        at = f" ({numbered('layer', positions)})" if positions else ""
        out.print(f"{difference.asked} -> {difference.found}{at}", markup=False)
    if accepted:
        differences = counted(len(accepted), "difference")
        out.print(f"{receipt}: {differences} accepted by {acceptance.by}", markup=False)
    else:
        out.print(f"{receipt}: this environment makes the same plan; nothing to accept")


def _user() -> str:
    """Git's user, else the login name; empty where the system has none, as in a container."""
    git = shutil.which("git")
    if git is not None:
        asked = subprocess.run([git, "config", "user.name"], capture_output=True, check=False)
        if name := asked.stdout.decode("utf-8", "replace").strip():
            return name
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the latter until Python 3.13
        return ""
