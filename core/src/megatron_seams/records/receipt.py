"""Receipts: a plan on disk with the versions and digests that produced it.

A receipt contains its recipe, so that :mod:`megatron_seams.records.verify` can resolve it again.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from megatron_seams._version import __version__
from megatron_seams.base.canonical_json import json_digest, json_text
from megatron_seams.base.files import in_words, read_file
from megatron_seams.errors import ReceiptUnreadable
from megatron_seams.planning.plan import Plan
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.records.plan_json import describe_plan, layer_line
from megatron_seams.records.request_json import recipe_of, request_of
from megatron_seams.records.software import HELD, MAX_BYTES, software

SCHEMA = 3
#: The schemas that are read. Digests of schema 1 were taken in another way, and say nothing now.
#: Schema 2 has no placement table, and is otherwise the same.
READ = (1, 2, SCHEMA)
KIND = "megatron-seams receipt"
#: The keys of a row of the placement table, and of an acceptance, that are read again.
_PLACED: Final = frozenset({"what", "name", "at", "provider", "layers", "mtp"})
_ENTRY: Final = ("by", "reason", "date", "previous_digest")
_ANEW: Final = "write it anew from its recipe"


def make_receipt(plan: Plan, recipe: Recipe, *, hold_software: Sequence[str] = ()) -> str:
    """The receipt of ``plan`` as text, ending in a newline; the same plan gives the same bytes.

    Args:
        plan: The plan.
        recipe: Its recipe.
        hold_software: The distributions of :data:`.software.NAMED` whose versions the receipt
            holds: another version is then a difference.

    Raises:
        RecipeInvalid: The recipe holds a value that no recipe file can hold.
        ManifestUnreadable: The code of one of the plan's seams cannot be read.
    """
    return receipt_text(describe_plan(plan), request_of(recipe), hold_software=hold_software)


def receipt_text(
    plan: Mapping[str, Any],
    request: Mapping[str, Any],
    accepted: Sequence[Mapping[str, Any]] = (),
    *,
    hold_software: Sequence[str] = (),
) -> str:
    """The text of a receipt.

    Args:
        plan: The plan, from :func:`describe_plan`.
        request: The recipe, from :func:`request_of`.
        accepted: The acceptances, the oldest first (:mod:`megatron_seams.records.accept`).
        hold_software: As for :func:`make_receipt`.
    """
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "planner": __version__,
        "software": software(),
        "request": request,
        "plan": plan,
    }
    if hold_software:
        body[HELD] = sorted(hold_software)
    if accepted:
        body["accepted"] = list(accepted)
    body["digest"] = receipt_digest(body)
    return json_text(body)


def receipt_digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of a receipt, from the digests of its body and of its acceptances.

    So that an acceptance can name the receipt that it replaced by both, and be checked without it.
    """
    if body.get("schema") == 1:
        return json_digest({key: value for key, value in body.items() if key != "digest"})
    return sealed(body_digest(body), body.get("accepted", []))


def body_digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of a receipt without its acceptances and its own digest, in canonical JSON."""
    return json_digest({k: v for k, v in body.items() if k not in ("accepted", "digest")})


def sealed(body: str, accepted: Any) -> str:
    """The digest of a receipt with that digest of its body, and those acceptances."""
    return json_digest({"accepted": accepted, "body": body})


def read_receipt(path: Path) -> tuple[dict[str, Any], Recipe]:
    """Read a receipt and the recipe in it.

    Raises:
        ReceiptUnreadable: The file is no receipt, one of another schema, or a byte was changed.
    """
    try:
        text = read_file(path, MAX_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        # A path may be wrong; bytes that are no text are another file's, or damaged.
        advice = f"correct the path, or {_ANEW}" if isinstance(error, OSError) else _ANEW
        raise _unreadable(str(path), in_words(error), advice) from error
    return parse_receipt(text, str(path))


def parse_receipt(text: str, where: str) -> tuple[dict[str, Any], Recipe]:
    """Read the text of a receipt, and the recipe in it.

    Args:
        text: The text.
        where: The file or checkpoint that it comes from, for messages.

    Raises:
        ReceiptUnreadable: The text is no receipt, one of another schema, or was edited.
    """

    def unreadable(found: str, advice: str) -> ReceiptUnreadable:
        return _unreadable(where, found, advice)

    advice = _ANEW
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise unreadable(str(error), advice) from error
    if not isinstance(body, dict) or body.get("kind") != KIND:
        raise unreadable(f"it is not a {KIND}", advice)
    if type(body.get("schema")) is not int or body["schema"] not in READ:
        raise unreadable(
            f"its schema is {body.get('schema')!r}, and this version reads "
            f"{', '.join(map(str, READ))}",
            f"read it with the release that wrote it ({body.get('planner')}), or {advice}",
        )
    # The digest covers the values. That the text is their canonical spelling covers every byte.
    if body.get("digest") != receipt_digest(body) or text != json_text(body):
        raise unreadable(
            "its contents do not have the digest that it states: it was edited afterwards",
            "restore it from version control, or write it anew",
        )
    try:
        recipe, faults = recipe_of(body["request"], tagged=body["schema"] > 1)
        whole = _is_whole(body["plan"]) and _holds_names(body) and _holds_entries(body)
        broken = _broken_link(body.get("accepted", []))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise unreadable(f"it lacks what a receipt holds ({error!r})", advice) from error
    if not whole:
        raise unreadable("it lacks what a receipt holds", advice)
    if broken:
        raise unreadable(broken, "restore it from version control")
    if recipe is None:
        listed = "; ".join(f"{fault.key}: {fault.message}" for fault in faults)
        raise unreadable(f"the recipe in it is not valid: {listed}", advice)
    return body, recipe


def _unreadable(where: str, found: str, advice: str) -> ReceiptUnreadable:
    return ReceiptUnreadable(
        asked="a receipt that can be read", found=found, next=advice, file=where
    )


def _is_whole(plan: dict[str, Any]) -> bool:
    """Whether a plan from a file has everything that a comparison reads; may raise if not."""
    layers = [*plan["layers"], *plan["mtp_layers"]]
    seams, rows = plan["seams"], plan.get("placement", [])
    tables = (seams, plan["megatron_core"], *seams.values(), *plan["features"], *rows)
    return (
        isinstance(plan["features"], list)
        and isinstance(rows, list)
        and all(isinstance(table, dict) for table in tables)
        and all(layer_line(layer) and isinstance(layer["position"], int) for layer in layers)
        and isinstance(plan["megatron_core"]["version"], str)
        and all(isinstance(row["name"], str) and row.keys() >= _PLACED for row in rows)
    )


def _holds_names(body: dict[str, Any]) -> bool:
    """Whether what a receipt says of software can be compared; may raise if not."""
    versions = body.get("software", {}).values()
    known = all(value is None or isinstance(value, str) for value in versions)
    names = body.get(HELD, [])
    return known and isinstance(names, list) and all(isinstance(name, str) for name in names)


def _holds_entries(body: dict[str, Any]) -> bool:
    """Whether every acceptance says what is read of one; may raise if not."""
    return all(isinstance(entry[key], str) for entry in body.get("accepted", []) for key in _ENTRY)


def _broken_link(accepted: list[dict[str, Any]]) -> str:
    """Which acceptance does not name the receipt that it replaced; empty where all do.

    Each holds the digest of that receipt's body and, with the acceptances before it, that receipt's
    digest: one that is edited, dropped or moved breaks those after it. What was accepted in schema
    1, before all others, holds the digest alone.
    """
    linked = False
    for number, entry in enumerate(accepted):
        body = entry.get("previous_body")
        linked = linked or body is not None
        whole = body is not None and entry["previous_digest"] == sealed(body, accepted[:number])
        if linked and not whole:
            return (
                f"acceptance {number + 1} of {len(accepted)} does not have the digest of the "
                "receipt that it replaced: those before it were edited, dropped or moved"
            )
    return ""
