"""Verification: a receipt's recipe resolved again, and every difference between the two plans."""

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_seams.errors import ReceiptDiffers, Refusal, SeamsError
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.records.plan_json import describe_plan, describe_seam, layer_line
from megatron_seams.records.receipt import read_receipt


def verify(
    path: Path | str, environment: Environment, *, today: datetime.date | None = None
) -> tuple[SeamsError, ...]:
    """Compare a receipt with the plan that an environment makes of its recipe.

    Returns:
        Every difference; none if the environment still makes exactly this plan.

    Raises:
        ReceiptUnreadable: The file is no receipt, or was edited.
    """
    body, recipe = read_receipt(Path(path))
    old = body["plan"]
    try:
        plan = resolve(recipe, environment, today=today)
    except Refusal as refusal:
        return (*_environment_differences(old, environment), *refusal.reasons)
    return tuple(differences(old, describe_plan(plan)))


def _environment_differences(
    old: dict[str, Any], environment: Environment
) -> Iterator[ReceiptDiffers]:
    """The differences of Megatron and seams, for a recipe that no longer resolves."""
    surface = environment.surface
    megatron = {"version": str(surface.version), "surface_digest": surface.digest}
    installed = {seam.name: seam for seam in environment.discovery.seams}
    seams = {name: describe_seam(installed[name]) for name in old["seams"] if name in installed}
    yield from _compare("megatron_core", old["megatron_core"], megatron)
    yield from _compare("seams", old["seams"], seams)


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[ReceiptDiffers]:
    """Every difference between two plans of :func:`describe_plan`."""
    for key in sorted(set(old) | set(new)):
        if key in ("layers", "mtp_layers"):
            yield from _layer_differences(key, old.get(key, []), new.get(key, []))
        else:
            yield from _compare(key, old.get(key), new.get(key))


def _compare(path: str, old: Any, new: Any) -> Iterator[ReceiptDiffers]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            yield from _compare(f"{path}.{key}", old.get(key), new.get(key))
    elif old != new and not path.endswith(".why"):
        # The reason for a provider is prose that names versions; the provider itself is compared.
        yield _differs(path, old, new)


def _layer_differences(
    path: str, old: list[dict[str, Any]], new: list[dict[str, Any]]
) -> Iterator[ReceiptDiffers]:
    """One difference for each pair of old and new layer, with the positions of all such layers."""
    if len(old) != len(new):
        yield _differs(f"{path}: number of layers", len(old), len(new))
        return
    groups: dict[tuple[str, str], list[int]] = {}
    for before, after in zip(old, new, strict=True):
        was, now = layer_line(before), layer_line(after)
        if was != now:
            groups.setdefault((was, now), []).append(before["position"])
    for (was, now), positions in groups.items():
        yield _differs(path, was, now, tuple(positions))


def _differs(path: str, old: Any, new: Any, positions: tuple[int, ...] = ()) -> ReceiptDiffers:
    def shown(value: Any) -> str:
        if value is None:
            return "nothing"
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True)

    return ReceiptDiffers(
        asked=f"{path}: {shown(old)}",
        found=shown(new),
        next="restore the environment of the receipt; or review the change, and accept it with a "
        "reason",
        key=path,
        positions=positions,
    )
