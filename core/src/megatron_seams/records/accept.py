"""Acceptance: a receipt rewritten to a changed plan, with who accepted it, why, and the old values.

Native-first must not change a model in the middle of its life: after an upgrade ``verify`` refuses
a receipt until a person has looked at the differences and accepted them here.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import field

from megatron_seams.base.files import in_words, locked, replace_text
from megatron_seams.base.validators import sentence, visible_sentence
from megatron_seams.errors import AcceptanceInvalid, ReceiptDiffers
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.records.plan_json import describe_plan
from megatron_seams.records.receipt import body_digest, read_receipt, receipt_text
from megatron_seams.records.request_json import request_of
from megatron_seams.records.software import held_names
from megatron_seams.records.verify import (
    differences,
    policy_differences,
    recipe_differences,
    software_differences,
)


@attrs.frozen(kw_only=True)
class Acceptance:
    """One entry of a receipt's history.

    Attributes:
        by: The name of the person who accepts, as version control has it.
        reason: Their reason, in a sentence.
        when: The day, UTC.
    """

    by: str = field(validator=sentence)
    reason: str = field(validator=visible_sentence)
    when: datetime.date


def accept(
    path: Path,
    environment: Environment,
    acceptance: Acceptance,
    *,
    recipe: Recipe | None = None,
    hold_software: Sequence[str] = (),
) -> tuple[ReceiptDiffers, ...]:
    """Rewrite a receipt to the plan that this environment makes of its recipe.

    The file is replaced as a whole or not at all, and keeps every earlier acceptance. Of several
    that accept at once, each sees what the one before it has written.

    Args:
        path: The receipt; of a link, its target is rewritten.
        environment: The Megatron and the seams that make the new plan.
        acceptance: Who, why and when.
        recipe: The recipe as it is now, to be accepted too; the receipt's own by default.
        hold_software: The distributions whose versions the receipt is to hold, besides those that
            it does already.

    Returns:
        Every difference that was accepted; none if there is none, and the file is then not touched.

    Raises:
        ReceiptUnreadable: The file is no receipt, or was edited.
        Refusal: This environment makes no plan of the recipe.
        AcceptanceInvalid: The file cannot be locked or replaced.
        RecipeInvalid: The recipe holds a value that no recipe file can hold.
        ManifestUnreadable: The code of one of the plan's seams cannot be read.
    """
    found, _ = _accepted(path, environment, acceptance, recipe, hold_software)
    if not found:
        return ()
    try:
        with locked(path):
            # Another process may have accepted while this one waited.
            found, text = _accepted(path, environment, acceptance, recipe, hold_software)
            if found:
                replace_text(path, text)
    except OSError as error:
        raise AcceptanceInvalid(
            asked=f"the receipt {path} with the new plan",
            found=f"it cannot be replaced: {in_words(error)}",
            next="make the file and its folder writable; nothing was changed",
            file=str(path),
        ) from error
    return found


def _accepted(
    path: Path,
    environment: Environment,
    acceptance: Acceptance,
    recipe: Recipe | None,
    hold_software: Sequence[str],
) -> tuple[tuple[ReceiptDiffers, ...], str]:
    """The differences that an acceptance would accept, and the receipt's text after it."""
    body, kept = read_receipt(path)
    wanted = kept if recipe is None else recipe
    plan = describe_plan(resolve(wanted, environment, today=acceptance.when))
    found = (
        *recipe_differences(kept, wanted),
        *policy_differences(body, hold_software),
        *software_differences(body, hold_software),
        *differences(body, plan),
    )
    entry = {
        "by": acceptance.by,
        "reason": acceptance.reason,
        "date": acceptance.when.isoformat(),
        "previous_digest": body["digest"],
        "differences": [_described(difference) for difference in found],
    }
    if body["schema"] > 1:
        entry["previous_body"] = body_digest(body)
    history = [*body.get("accepted", []), entry]
    held = held_names(body, hold_software)
    return found, receipt_text(plan, request_of(wanted), history, hold_software=held)


def _described(difference: ReceiptDiffers) -> dict[str, Any]:
    what, _, was = difference.asked.partition(": ")
    return {
        "what": what,
        "was": was,
        "now": difference.found,
        "positions": list(difference.positions),
    }
