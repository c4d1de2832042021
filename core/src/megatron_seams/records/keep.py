"""Writing a receipt where one may be already: nothing that it records is lost by accident."""

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from megatron_seams.base.files import locked, replace_text
from megatron_seams.base.wording import counted
from megatron_seams.errors import ReceiptKept, ReceiptUnreadable
from megatron_seams.planning.plan import Plan
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.records.plan_json import describe_plan
from megatron_seams.records.receipt import make_receipt, read_receipt
from megatron_seams.records.software import held_names
from megatron_seams.records.verify import (
    differences,
    recipe_differences,
    software_differences,
)

_ACCEPT: Final = (
    "accept the recipe as it is now with a reason, which keeps the history; or write to another "
    "file; or replace it on purpose"
)


def keep_receipt(
    path: Path,
    plan: Plan,
    recipe: Recipe,
    *,
    replace: bool = False,
    hold_software: Sequence[str] = (),
) -> None:
    """Write the receipt of a plan to a file.

    Args:
        path: The file; of a link, its target is written. A pipe is written directly.
        plan: The plan.
        recipe: Its recipe.
        replace: Whether to overwrite whatever the file holds.
        hold_software: The distributions whose versions the receipt holds. Those that the receipt in
            the file holds are held on.

    Raises:
        ReceiptKept: The file holds something else than a receipt of this plan without acceptances,
            and is not to be replaced.
        RecipeInvalid: The recipe holds a value that no recipe file can hold.
        ManifestUnreadable: The code of one of the plan's seams cannot be read.
        OSError: The file cannot be written.
    """
    text = make_receipt(plan, recipe, hold_software=hold_software)
    if _is_stream(path):
        replace_text(path, text)
        return
    with locked(path):
        if not replace:
            held = _against(path, plan, recipe)
            text = make_receipt(plan, recipe, hold_software=sorted({*held, *hold_software}))
        replace_text(path, text)


def _is_stream(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _against(path: Path, plan: Plan, recipe: Recipe) -> tuple[str, ...]:
    """The distributions that the receipt in a file holds, none for a file that is new or empty.

    Raises:
        ReceiptKept: Something in the file would be lost.
    """
    try:
        if not path.stat().st_size:
            return ()
    except FileNotFoundError:
        return ()
    try:
        body, kept = read_receipt(path)
    except ReceiptUnreadable as unreadable:
        raise _kept(
            path,
            f"it is there already, and is no receipt that can be read: {unreadable.found}",
            "write to another file; or, if what it holds may be lost, replace it on purpose",
        ) from unreadable
    count = len(body.get("accepted", []))
    if count:
        held = counted(count, "acceptance")
        raise _kept(path, f"it holds {held}, which a new receipt would not", _ACCEPT)
    found = (
        *recipe_differences(kept, recipe),
        *software_differences(body),
        *differences(body, describe_plan(plan)),
    )
    if found:
        first = f"{found[0].asked} -> {found[0].found}"
        more = f", and {len(found) - 1} more differences" if len(found) > 1 else ""
        raise _kept(path, f"it is the receipt of another plan ({first}{more})", _ACCEPT)
    return held_names(body)


def _kept(path: Path, found: str, advice: str) -> ReceiptKept:
    return ReceiptKept(asked=f"a receipt in {path}", found=found, next=advice, file=str(path))
