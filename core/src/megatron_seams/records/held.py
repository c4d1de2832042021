"""A checkpoint's receipt against that of the run that is to load it.

A checkpoint moves between parallel layouts, so stages, ranks and parallel sizes are not compared;
what the model is, is: every layer and its provider, Megatron, the seams' versions and code,
Megatron's settings, and the versions of other software that either receipt holds.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from megatron_seams.errors import CheckpointHeld, SeamsError
from megatron_seams.records.comparison import same, shown
from megatron_seams.records.plan_json import layer_line
from megatron_seams.records.receipt import parse_receipt
from megatron_seams.records.software import differing, held_differences, held_names

#: Settings of Megatron that divide a model among ranks and leave it the same.
_LAYOUT: Final = frozenset(
    {
        "num_layers_in_first_pipeline_stage",
        "num_layers_in_last_pipeline_stage",
        "sequence_parallel",
        "moe_token_dispatcher_type",
    }
)
#: Parts of a seam's or a feature's description that inform, or follow from the layout.
_ASIDE: Final = frozenset({"owner", "why", "stages", "justified"})


def held(saved: str, run: str, where: str) -> tuple[SeamsError, ...]:
    """Every reason for which a run may not load a checkpoint; none if it may.

    Args:
        saved: The text of the receipt in the checkpoint.
        run: The text of the run's receipt. An acceptance in it that names the checkpoint's receipt
            takes every difference.
        where: The checkpoint, for messages.

    Raises:
        ReceiptUnreadable: One of the two is no receipt, or was edited.
    """
    before, _ = parse_receipt(saved, where)
    now, _ = parse_receipt(run, "the run's receipt")
    if before["digest"] == now["digest"]:
        return ()
    if any(entry["previous_digest"] == before["digest"] for entry in now.get("accepted", [])):
        return ()
    return tuple(
        CheckpointHeld(
            asked=f"{key}: {shown(was)}, as in the receipt of checkpoint {where}",
            found=f"{shown(found)} in this run's receipt",
            next="start the run with the checkpoint's receipt in its environment; or review the "
            "change, and accept it in that receipt with a reason",
            subject=where,
            key=key,
        )
        for key, was, found in (
            *_differences("", _model(before), _model(now)),
            *_software_held(before, now),
        )
    )


def software_differences(saved: str, run: str) -> dict[str, tuple[str | None, str | None]]:
    """Distribution -> its version in either receipt, where they differ: information."""
    return differing(*(json.loads(text).get("software", {}) for text in (saved, run)))


def _software_held(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    names = held_names(before, held_names(now))
    versions = (it.get("software", {}) for it in (before, now))
    for name, (was, found) in held_differences(names, *versions).items():
        yield f"software.{name}", was, found


def _model(body: Mapping[str, Any]) -> dict[str, Any]:
    """A receipt's description of the model, whatever the layout."""
    plan, request = body["plan"], body["request"]
    megatron = {k: v for k, v in request.get("megatron", {}).items() if k not in _LAYOUT}
    return {
        "layers": {
            str(each["position"]): layer_line(each, staged=False, owned=False)
            for each in plan["layers"]
        },
        "mtp_layers": [layer_line(each, staged=False, owned=False) for each in plan["mtp_layers"]],
        "features": [_bare(each) for each in plan["features"]],
        "seams": {name: _bare(each) for name, each in plan["seams"].items()},
        "megatron_core": plan["megatron_core"],
        "options": request.get("seams", {}),
        "megatron": megatron,
    }


def _bare(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in _ASIDE}


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(f"{path}.{key}" if path else key, old.get(key), new.get(key))
    elif not same(old, new):
        yield path, old, new
