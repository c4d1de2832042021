"""Preview: what another Megatron changes for seams and recipes, read from its source."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs

from megatron_seams.errors import Refusal, SeamsError
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.plan import Layer, Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.seams.manifest import Carrier
from megatron_seams.seams.removal import how_to_remove
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.surface import Native, NativeSymbol

SCHEMA: Final = 1

#: A seam's state under the other Megatron -> whether a person has something to do.
STATES: Final = {
    "graduates": True,
    "breaks": True,
    "needed again": True,
    "superseded": False,
    "stays": False,
}


@attrs.frozen(kw_only=True)
class SeamChange:
    """One seam under the other Megatron.

    Attributes:
        seam: The seam.
        state: A key of :data:`STATES`. Of a seam that graduates and breaks, ``graduates``:
            it is no longer needed.
        why: Every reason.
    """

    seam: Seam
    state: str
    why: tuple[str, ...]


@attrs.frozen(kw_only=True)
class LayerChange:
    """Layers that get another provider, or another slot.

    Attributes:
        was: Family and provider before the upgrade.
        now: Family and provider with the other Megatron.
        positions: The 1-based layer numbers.
    """

    was: str
    now: str
    positions: tuple[int, ...]


@attrs.frozen(kw_only=True)
class RecipeChange:
    """One recipe under the other Megatron.

    Attributes:
        name: The recipe as the user named it.
        layers: The layers that would resolve differently.
        refused_before: The reasons why it has no plan before the upgrade; empty if it has one.
        refused_after: The reasons why it has no plan with the other Megatron; empty if it has one.
    """

    name: str
    layers: tuple[LayerChange, ...] = ()
    refused_before: tuple[SeamsError, ...] = ()
    refused_after: tuple[SeamsError, ...] = ()

    @property
    def needs_person(self) -> bool:
        """Whether the model would change, or be refused."""
        return bool(self.layers or self.refused_after)


@attrs.frozen(kw_only=True)
class Preview:
    """The whole comparison.

    Attributes:
        before: The importable Megatron, or the one named, and the seams.
        after: The other Megatron and the same seams.
        seams: Every valid seam, by name.
        recipes: Every recipe, in the order given.
    """

    before: Environment
    after: Environment
    seams: tuple[SeamChange, ...]
    recipes: tuple[RecipeChange, ...]

    @property
    def needs_person(self) -> bool:
        """Whether a person has something to do or to decide before the upgrade."""
        return any(STATES[change.state] for change in self.seams) or any(
            change.needs_person for change in self.recipes
        )

    def to_dict(self) -> dict[str, Any]:
        """The preview as JSON values, for ``preview --json``."""
        return {
            "schema": SCHEMA,
            "from": _described(self.before),
            "to": _described(self.after),
            "needs_person": self.needs_person,
            "seams": [
                {
                    "name": change.seam.name,
                    "family": change.seam.family,
                    "owner": change.seam.owner,
                    "state": change.state,
                    "why": list(change.why),
                }
                for change in self.seams
            ],
            "recipes": [
                {
                    "name": change.name,
                    "layers": [
                        {**attrs.asdict(layer), "positions": list(layer.positions)}
                        for layer in change.layers
                    ],
                    "refused_before": [reason.to_dict() for reason in change.refused_before],
                    "refused_after": [reason.to_dict() for reason in change.refused_after],
                }
                for change in self.recipes
            ],
            "findings": [finding.to_dict() for finding in self.after.discovery.findings],
        }


def preview(
    before: Environment, after: Environment, recipes: Iterable[tuple[str, Recipe]] = ()
) -> Preview:
    """Compare two Megatrons for the same seams.

    Args:
        before: The environment before the upgrade.
        after: The environment with the other Megatron; its seams are those of ``before``.
        recipes: Name and recipe of each model to compare.
    """
    return Preview(
        before=before,
        after=after,
        seams=tuple(seam_change(seam, before, after) for seam in before.discovery.seams),
        recipes=tuple(recipe_change(name, recipe, before, after) for name, recipe in recipes),
    )


def seam_change(seam: Seam, before: Environment, after: Environment) -> SeamChange:
    """The state of ``seam`` under the other Megatron, with every reason."""
    retired, was_retired = after.superseded_by(seam), before.superseded_by(seam)
    if retired is not None:
        constant = seam.manifest.upstream.symbol_name
        symbol = after.surface.of_constant(constant) if constant else None
        built = f"{retired} builds {seam.family}"
        if symbol is not None:
            built += f" ({symbol.constant}, slot {symbol.slot})"
        state = "superseded" if was_retired else "graduates"
        return SeamChange(
            seam=seam, state=state, why=(f"{built}; {how_to_remove(seam, before.distributions)}",)
        )
    broken = tuple(_breaks(seam, before, after))
    if broken:
        return SeamChange(seam=seam, state="breaks", why=broken)
    if was_retired is not None:
        why = f"{was_retired} is gone: {seam.family} has no native equivalent there"
        return SeamChange(seam=seam, state="needed again", why=(why,))
    return SeamChange(
        seam=seam, state="stays", why=("not native there, and all that it needs is there",)
    )


def recipe_change(
    name: str, recipe: Recipe, before: Environment, after: Environment
) -> RecipeChange:
    """The changes to one recipe, layer by layer."""
    old, refused_before = _resolved(recipe, before)
    new, refused_after = _resolved(recipe, after)
    layers: tuple[LayerChange, ...] = ()
    if new is not None:
        layers = tuple(_layer_changes(old, new))
    return RecipeChange(
        name=name, layers=layers, refused_before=refused_before, refused_after=refused_after
    )


def _resolved(
    recipe: Recipe, environment: Environment
) -> tuple[Plan | None, tuple[SeamsError, ...]]:
    try:
        return resolve(recipe, environment), ()
    except Refusal as refusal:
        return None, refusal.reasons


def _layer_changes(old: Plan | None, new: Plan) -> Iterator[LayerChange]:
    groups: dict[tuple[str, str], list[int]] = {}
    # A recipe has the same number of layers on every Megatron.
    before = [_line(layer) for layer in old.layers] if old else ["refused"] * len(new.layers)
    for was, layer in zip(before, new.layers, strict=True):
        if was != _line(layer):
            groups.setdefault((was, _line(layer)), []).append(layer.position)
    for (was, now), positions in groups.items():
        yield LayerChange(was=was, now=now, positions=tuple(positions))


def _line(layer: Layer) -> str:
    provider = layer.provider
    owner = "" if isinstance(provider, Native) else f" of {provider.owner}"
    return f"{layer.family} by {provider.name}{owner} on {provider.slot} {provider.symbol}"


def _breaks(seam: Seam, before: Environment, after: Environment) -> Iterator[str]:
    fault = after.out_of_range(seam)
    others = tuple(_other_breaks(seam, before, after))
    if fault is not None:
        fits = "" if others else "; it would fit but for its range ([requires] megatron-core)"
        yield f"megatron-core {after.surface.version}: {fault.found}{fits}"
    yield from others


def _other_breaks(seam: Seam, before: Environment, after: Environment) -> Iterator[str]:
    """Why the seam does not fit the other Megatron, its range aside."""
    native = after.surface.of_family(seam.family)
    if native is not None and seam.manifest.upstream.fallback == "refuse":
        yield (
            f"contested: native {native.symbol!r} builds {seam.family}, and the manifest "
            "accepts no upstream equivalent"
        )
    if seam.manifest.carrier is not None:
        yield from _carrier_breaks(seam.manifest.carrier, before, after)


def _carrier_breaks(carrier: Carrier, before: Environment, after: Environment) -> Iterator[str]:
    offered = [after.surface.of_slot(slot) for slot in carrier.slots]
    if not any(offered):
        has = ", ".join(symbol.slot for symbol in after.surface.symbols) or "none"
        yield f"no slot that may carry it: it offers {', '.join(carrier.slots)}; there are {has}"
    for symbol in offered:
        if symbol is not None:
            yield from _keyword_breaks(carrier, before.surface.of_slot(symbol.slot), symbol)


def _keyword_breaks(carrier: Carrier, old: NativeSymbol | None, new: NativeSymbol) -> Iterator[str]:
    """Changes in the keywords that upstream's loop passes to a slot, which the seam does not take.

    The other Megatron may have renamed a keyword: beside a new one that the seam does not take, the
    keywords that are gone are named.
    """
    passed = set(new.keywords)
    gone = set(old.keywords) - passed if old else set()
    if carrier.declares_keywords:
        missing = set(carrier.needs) - passed
        strange = passed - {*carrier.needs, *carrier.takes}
        unknown = ", which the seam does not take"
    else:
        missing, strange = gone, passed - set(old.keywords) if old else set()
        unknown = ", and the manifest does not say what the seam takes"
    changes = []
    if strange:
        changes.append(f"now passes {_names(strange)}{unknown}")
    if lost := missing | (gone if strange else set()):
        changes.append(f"no longer passes {_names(lost)}")
    if changes:
        yield f"slot {new.slot}: its loop {', and '.join(changes)}"


def _names(keywords: Iterable[str]) -> str:
    return " and ".join(repr(keyword) for keyword in sorted(keywords))


def _described(environment: Environment) -> dict[str, Any]:
    surface = environment.surface
    return {
        "megatron_core": str(surface.version) if surface.version else None,
        "origin": surface.origin or None,
        "surface_digest": surface.digest or None,
    }
