"""Receipts: a plan on disk with the versions and digests that produced it.

A receipt contains its recipe, so that :mod:`megatron_seams.records.verify` can resolve it again.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from megatron_seams._version import __version__
from megatron_seams.base.canonical_json import json_digest, json_text
from megatron_seams.base.structure import key_of, structure
from megatron_seams.errors import ReceiptUnreadable
from megatron_seams.planning.plan import Plan
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.records.plan_json import describe_plan, layer_line

SCHEMA = 1
KIND = "megatron-seams receipt"
_MAX_BYTES = 256 * 1024 * 1024


def make_receipt(plan: Plan, recipe: Recipe) -> str:
    """The receipt of ``plan`` as text, ending in a newline; the same plan gives the same bytes."""
    return receipt_text(describe_plan(plan), _plain(recipe))


def receipt_text(
    plan: Mapping[str, Any], request: Mapping[str, Any], accepted: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The text of a receipt.

    Args:
        plan: The plan, from :func:`describe_plan`.
        request: The recipe as JSON values.
        accepted: The acceptances, the oldest first (:mod:`megatron_seams.records.accept`).
    """
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "planner": __version__,
        "request": request,
        "plan": plan,
    }
    if accepted:
        body["accepted"] = list(accepted)
    body["digest"] = receipt_digest(body)
    return json_text(body)


def receipt_digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of a receipt without its own digest, in canonical JSON."""
    return json_digest({key: value for key, value in body.items() if key != "digest"})


def _plain(value: Any) -> Any:
    """A recipe as JSON values, with the keys of its TOML file."""
    if attrs.has(type(value)):
        pairs = attrs.asdict(value, recurse=False).items()
        return {key_of(name): _plain(part) for name, part in pairs if part is not None}
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


def read_receipt(path: Path) -> tuple[dict[str, Any], Recipe]:
    """Read a receipt and the recipe in it.

    Raises:
        ReceiptUnreadable: The file is no receipt, one of another schema, or a byte was changed.
    """

    def unreadable(found: str, advice: str) -> ReceiptUnreadable:
        return ReceiptUnreadable(
            asked="a receipt that can be read", found=found, next=advice, file=str(path)
        )

    advice = "write it anew from its recipe"
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise unreadable(f"{len(data)} bytes", advice)
        text = data.decode("utf-8")
        body = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(str(error), advice) from error
    if not isinstance(body, dict) or body.get("kind") != KIND:
        raise unreadable(f"it is not a {KIND}", advice)
    if body.get("schema") != SCHEMA:
        raise unreadable(
            f"its schema is {body.get('schema')!r}, and this version reads {SCHEMA}", advice
        )
    # The digest covers the values. That the text is their canonical spelling covers every byte.
    if body.get("digest") != receipt_digest(body) or text != json_text(body):
        raise unreadable(
            "its contents do not have the digest that it states: it was edited afterwards",
            "restore it from version control, or write it anew",
        )
    try:
        request = _dated(body["request"])
        whole = _is_whole(body["plan"]) and isinstance(body.get("accepted", []), list)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise unreadable(f"it lacks what a receipt holds ({error!r})", advice) from error
    if not whole:
        raise unreadable("it lacks what a receipt holds", advice)
    recipe, faults = structure(Recipe, request)
    if recipe is None:
        listed = "; ".join(f"{fault.key}: {fault.message}" for fault in faults)
        raise unreadable(f"the recipe in it is not valid: {listed}", advice)
    return body, recipe


def _is_whole(plan: dict[str, Any]) -> bool:
    """Whether a plan from a file has everything that a comparison reads; may raise if not."""
    layers = [*plan["layers"], *plan["mtp_layers"]]
    parts = (plan["seams"], plan["megatron_core"])
    return all(isinstance(part, dict) for part in parts) and all(
        layer_line(layer) and isinstance(layer["position"], int) for layer in layers
    )


def _dated(request: dict[str, Any]) -> dict[str, Any]:
    # JSON has no dates; among a recipe's own keys, only an override's expiry is one.
    entries = request.get("override", [])
    return {
        **request,
        "override": [
            {**entry, "expires": datetime.date.fromisoformat(entry["expires"])} for entry in entries
        ],
    }
