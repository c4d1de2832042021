"""Verification: a receipt's recipe resolved again, and every difference between the two plans."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from megatron_seams.errors import ReceiptDiffers, Refusal, SeamsError
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.records.comparison import same, shown
from megatron_seams.records.plan_json import describe_plan, describe_seam, layer_line
from megatron_seams.records.receipt import SCHEMA, read_receipt
from megatron_seams.records.request_json import request_of
from megatron_seams.records.software import HELD, held_differences, held_names, software

#: Keys of a plan that inform and decide nothing. The reason for a provider names versions; the
#: provider itself is compared.
_INFORMATION: Final = ("why", "owner", "justified")
#: Keys whose meaning changed since schema 1.
_SINCE_SCHEMA_1: Final = ("pipeline", "manifest_digest", "code_digest")
#: Tables of a recipe that change no plan.
_ASIDE: Final = ("install", "smoke")


def verify(
    path: Path | str,
    environment: Environment,
    *,
    today: datetime.date | None = None,
    recipe: Recipe | None = None,
    hold_software: Sequence[str] = (),
    runs_here: bool = True,
) -> tuple[SeamsError, ...]:
    """Compare a receipt with the plan that an environment makes of its recipe.

    Args:
        path: The receipt.
        environment: The Megatron and the seams.
        today: The day on which overrides are judged; the system's by default.
        recipe: The recipe as it is now, which is compared with the one in the receipt.
        hold_software: The distributions whose versions the workspace holds, besides those that the
            receipt does; a receipt that holds fewer differs.
        runs_here: Whether the plan is to run in this environment. Where it is only read, as by the
            gate, which needs neither torch nor Transformer Engine, versions are not compared.

    Returns:
        Every difference; none if the environment still makes exactly this plan.

    Raises:
        ReceiptUnreadable: The file is no receipt, or was edited.
        ManifestUnreadable: The code of one of the plan's seams cannot be read.
    """
    body, kept = read_receipt(Path(path))
    changed: tuple[SeamsError, ...] = tuple(policy_differences(body, hold_software))
    if recipe is not None:
        changed = (*recipe_differences(kept, recipe), *changed)
    if runs_here:
        changed = (*changed, *software_differences(body, hold_software))
    try:
        plan = resolve(kept, environment, today=today)
    except Refusal as refusal:
        return (*changed, *_environment_differences(body, environment), *refusal.reasons)
    return (*changed, *differences(body, describe_plan(plan)))


def recipe_differences(kept: Recipe, recipe: Recipe) -> Iterator[ReceiptDiffers]:
    """Every key of a recipe that changed since a receipt; tables that change no plan left out."""
    old, new = request_of(kept), request_of(recipe)
    for key in sorted({*old, *new} - {*_ASIDE}):
        yield from _compare(f"recipe.{key}", old.get(key), new.get(key), ())


def policy_differences(
    body: Mapping[str, Any], hold_software: Sequence[str]
) -> Iterator[ReceiptDiffers]:
    """The difference of a receipt that holds fewer versions than the workspace wants held."""
    wanted = held_names(body, hold_software)
    if set(wanted) - {*held_names(body)}:
        yield _differs(HELD, list(held_names(body)), list(wanted))


def software_differences(
    body: Mapping[str, Any], hold_software: Sequence[str] = ()
) -> Iterator[ReceiptDiffers]:
    """Every version that is held, by the receipt or besides, and is another one here."""
    names = held_names(body, hold_software)
    if not names:
        return
    before = {**dict.fromkeys(names), **body.get("software", {})}
    for name, (was, now) in held_differences(names, before, software()).items():
        yield _differs(f"software.{name}", was, now)


def differences(body: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[ReceiptDiffers]:
    """Every difference between a receipt's plan and another of :func:`describe_plan`."""
    old = body["plan"]
    if body["schema"] == 1:
        yield _differs("schema", body["schema"], SCHEMA)
    passed = _passed(body)
    for key in sorted({*old, *new} - {*passed}):
        if key in ("layers", "mtp_layers"):
            staged = "pipeline" not in passed
            yield from _layer_differences(key, old.get(key, []), new.get(key, []), staged)
        elif key == "placement":
            yield from _placement_differences(old.get(key, []), new.get(key, []))
        else:
            yield from _compare(key, old.get(key), new.get(key), passed)


def _environment_differences(
    body: Mapping[str, Any], environment: Environment
) -> Iterator[ReceiptDiffers]:
    """The differences of Megatron and seams, for a recipe that no longer resolves."""
    surface, old = environment.surface, body["plan"]
    if body["schema"] == 1:
        yield _differs("schema", body["schema"], SCHEMA)
    megatron = {"version": str(surface.version), "surface_digest": surface.digest}
    installed = {seam.name: seam for seam in environment.discovery.seams}
    seams = {name: describe_seam(installed[name]) for name in old["seams"] if name in installed}
    yield from _compare("megatron_core", old["megatron_core"], megatron, ())
    yield from _compare("seams", old["seams"], seams, _passed(body))


def _passed(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of a plan that are not compared with a receipt's."""
    since = {1: (*_SINCE_SCHEMA_1, "placement"), 2: ("placement",)}
    return (*_INFORMATION, *since.get(body["schema"], ()))


def _compare(path: str, old: Any, new: Any, passed: tuple[str, ...]) -> Iterator[ReceiptDiffers]:
    """The differences of two values, those of tables key by key, less the keys passed over."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new} - {*passed}):
            yield from _compare(f"{path}.{key}", old.get(key), new.get(key), passed)
    elif not same(_without(old, passed), _without(new, passed)):
        yield _differs(path, old, new)


def _without(value: Any, passed: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_without(part, passed) for part in value]
    if isinstance(value, dict):
        return {key: _without(part, passed) for key, part in value.items() if key not in passed}
    return value


def _layer_differences(
    path: str, old: list[dict[str, Any]], new: list[dict[str, Any]], staged: bool
) -> Iterator[ReceiptDiffers]:
    """One difference for each pair of old and new layer, with the positions of all such layers."""
    if len(old) != len(new):
        yield _differs(f"{path}: number of layers", len(old), len(new))
        return
    groups: dict[tuple[str, str], list[int]] = {}
    for before, after in zip(old, new, strict=True):
        decides = [layer_line(it, staged=staged, owned=False) for it in (before, after)]
        if decides[0] != decides[1]:
            was, now = layer_line(before, staged=staged), layer_line(after, staged=staged)
            groups.setdefault((was, now), []).append(before["position"])
    for (was, now), positions in groups.items():
        yield _differs(path, was, now, tuple(positions))


def _placement_differences(
    old: list[dict[str, Any]], new: list[dict[str, Any]]
) -> Iterator[ReceiptDiffers]:
    """The differences of native features; layers and seams are compared by keys of their own."""
    rows = [
        {
            row["name"]: f"at {row['at']}, layers {row['layers']}, {row['mtp']} of each depth"
            for row in part
            if (row["what"], row["provider"]) == ("feature", "native")
        }
        for part in (old, new)
    ]
    for name in sorted({*rows[0], *rows[1]}):
        if rows[0].get(name) != rows[1].get(name):
            yield _differs(f"native feature {name}", rows[0].get(name), rows[1].get(name))


def _differs(path: str, old: Any, new: Any, positions: tuple[int, ...] = ()) -> ReceiptDiffers:
    if path == "schema":
        advice = "accept it with a reason, which writes it in this schema and keeps its history"
    elif path == HELD:
        advice = (
            "the workspace's policy holds more versions than the receipt: accept that with a "
            "reason, so that every run of the receipt holds them"
        )
    elif path.startswith("recipe."):
        advice = (
            "restore the recipe; or review the change, and accept the recipe as it is now with a "
            "reason"
        )
    else:
        advice = (
            "restore the environment of the receipt; or review the change, and accept it with a "
            "reason"
        )
    return ReceiptDiffers(
        asked=f"{path}: {shown(old)}",
        found=shown(new),
        next=advice,
        key=path,
        positions=positions,
    )
