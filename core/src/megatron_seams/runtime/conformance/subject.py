"""The seam under test, and the recipes of the small models that it is tested in; without torch."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from megatron_seams.base.structure import structure
from megatron_seams.base.toml import TomlError, read_toml
from megatron_seams.errors import RecipeInvalid, Refusal, SeamsError
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Parallelism, Recipe
from megatron_seams.runtime.conformance.rules import BUILDS, FOUND
from megatron_seams.seams.seam import Seam

#: The token of the seam's layers in the kit's patterns.
LAYER: Final = "X"

#: The layers that have a feature placed at layers: of two stages only the first has token ids.
_PLACED: Final = (1, 2)

#: Capability -> the tables of a recipe that ask for it, and the pattern that shows it. There is no
#: native attention in the patterns: it would look across documents and over context-parallel ranks.
ASKED: Final[Mapping[str, tuple[Mapping[str, Any], str]]] = {
    "": ({}, "X-X-"),
    "tensor-parallel": ({"parallelism": {"tensor-parallel": 2}}, "X-X-"),
    "sequence-parallel": (
        {"parallelism": {"tensor-parallel": 2, "sequence-parallel": True}},
        "X-X-",
    ),
    "pipeline-parallel": ({"parallelism": {"pipeline-parallel": 2}}, "X-|X-"),
    "expert-parallel": ({"parallelism": {"expert-parallel": 2}}, "XEXE"),
    "context-parallel": ({"parallelism": {"context-parallel": 2}}, "X-X-"),
    "packed-sequences": ({"runtime": {"packed-sequences": True}}, "X-X-"),
    "inference": ({"runtime": {"inference": True}}, "X-X-"),
}

#: The capabilities that need two ranks, in the order in which they are tried.
OVER_RANKS: Final = tuple(name for name in ASKED if name.endswith("-parallel"))


@attrs.frozen(kw_only=True)
class Subject:
    """A seam, and the settings that it is built with.

    Attributes:
        seam: The seam.
        environment: The installed Megatron and seams.
        options: ``[seams.NAME]`` of the recipe.
        megatron: ``[megatron]`` of the recipe, over the kit's own small sizes.
    """

    seam: Seam
    environment: Environment
    options: Mapping[str, Any] = attrs.field(factory=dict)
    megatron: Mapping[str, Any] = attrs.field(factory=dict)

    def supports(self, capability: str) -> bool:
        """Whether the manifest's ``[supports]`` has the capability."""
        return self.seam.manifest.supports[capability]

    def recipe(self, capability: str = "") -> Recipe:
        """The recipe of the small model for a capability; of the plain model without one."""
        tables, pattern = ASKED[capability]
        manifest = self.seam.manifest
        table: dict[str, Any] = {
            "schema": 1,
            "model": {"name": f"the conformance model of {self.seam.name}", "pattern": pattern},
            "policy": {"pin": {self.seam.family: self.seam.name}},
            "seams": {self.seam.name: dict(self.options)} if self.options else {},
            "megatron": dict(self.megatron),
            **tables,
        }
        if manifest.experiment:
            table["policy"] = {"experiments": [self.seam.name]}
        if manifest.feature is None:
            table["dialect"] = {"tokens": {LAYER: self.seam.family}}
            if self.environment.surface.of_family(self.seam.family) or self._superseded:
                # Built all the same: the seam is tested, and not the Megatron that retires it.
                table["policy"].pop("pin", None)
                table["override"] = [self._override()]
        else:
            table["model"]["pattern"] = pattern.replace(LAYER, "-")
            entry: dict[str, Any] = {"family": self.seam.family}
            if manifest.feature.placement != "embedding":
                entry["layers"] = list(_PLACED)
            table["features"] = [entry]
        recipe, faults = structure(Recipe, table)
        if recipe is None:
            FOUND.broken("; ".join(f"{fault.key}: {fault.message}" for fault in faults))
        return recipe

    @property
    def _superseded(self) -> bool:
        return self.environment.superseded_by(self.seam) is not None

    def _override(self) -> dict[str, Any]:
        return {
            "family": self.seam.family,
            "seam": self.seam.name,
            "reason": "its conformance is tested",
            "expires": datetime.date.today(),
        }

    def alone(self, capability: str) -> Plan:
        """The plan of the same layers on one rank, to compare with."""
        recipe = self.recipe(capability)
        model = attrs.evolve(recipe.model, pattern=recipe.model.pattern.replace("|", ""))
        return self._resolved(attrs.evolve(recipe, model=model, parallelism=Parallelism()))

    def plan(self, capability: str = "") -> Plan:
        """The plan of the small model for a capability.

        Raises:
            RuleBroken: The plan is refused.
        """
        return self._resolved(self.recipe(capability))

    def _resolved(self, recipe: Recipe) -> Plan:
        try:
            return resolve(recipe, self.environment)
        except Refusal as refusal:
            BUILDS.broken(f"it is refused:\n{refusal}")


def find_subject(
    name: str,
    environment: Environment,
    options: Mapping[str, Any] | None = None,
    megatron: Mapping[str, Any] | None = None,
) -> Subject:
    """The installed seam of that name.

    Raises:
        RuleBroken: There is none, or it is broken; with every fault.
    """
    if environment.faults:
        FOUND.broken(_said(environment.faults))
    seam = next((seam for seam in environment.discovery.seams if seam.name == name), None)
    faults = [
        fault
        for broken in environment.discovery.broken
        if broken.name == name
        for fault in broken.faults
    ]
    if seam is None:
        known = ", ".join(seam.name for seam in environment.discovery.seams) or "none"
        FOUND.broken(
            _said(faults) if faults else f"no seam {name!r} is installed; installed: {known}"
        )
    fault = environment.out_of_range(seam)
    if fault is not None:
        FOUND.broken(str(fault))
    return Subject(
        seam=seam, environment=environment, options=options or {}, megatron=megatron or {}
    )


def _said(faults: tuple[SeamsError, ...] | list[SeamsError]) -> str:
    return "\n".join(map(str, faults))


@attrs.frozen(kw_only=True)
class _Fragment:
    """The file of ``--seam-options``: two tables of a recipe.

    Attributes:
        seams: ``[seams]``, of which the seam under test alone may be there.
        megatron: ``[megatron]``.
    """

    seams: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    megatron: Mapping[str, Any] = attrs.field(factory=dict)


def read_fragment(file: Path, name: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Options and native settings from a part of a recipe: ``[seams.NAME]`` and ``[megatron]``.

    Raises:
        Refusal: The file cannot be read, or has anything else; with every fault.
    """

    def fault(found: str, key: str | None = None) -> RecipeInvalid:
        return RecipeInvalid(
            asked=f"options of seam {name!r} for the kit",
            found=found,
            next=f"name a file with [seams.{name}] and [megatron], or one of them",
            file=str(file),
            key=key,
        )

    try:
        fragment, faults = structure(_Fragment, read_toml(file))
    except TomlError as error:
        raise Refusal([fault(str(error))]) from error
    if fragment is None:
        raise Refusal(fault(it.message, it.key or None) for it in faults)
    if others := sorted({*fragment.seams} - {name}):
        raise Refusal(fault("it is another seam's", f"seams.{other}") for other in others)
    return fragment.seams.get(name, {}), fragment.megatron
