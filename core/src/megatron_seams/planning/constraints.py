"""Constraints: a recipe's settings, checked against the chosen seams and the Megatron."""

from collections.abc import Iterable, Iterator, Set

import attrs

from megatron_seams.base.structure import KeyFault
from megatron_seams.errors import (
    OptionsInvalid,
    SeamsError,
    Unsupported,
    UnusedSetting,
    UpstreamForbids,
)
from megatron_seams.planning.carriers import Carriers
from megatron_seams.planning.choices import Choices
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.native_keys import native_keys
from megatron_seams.recipes.pattern import MTP_SEPARATOR, STAGE_BREAK, Pattern
from megatron_seams.recipes.pipeline import layout_faults
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.seams.options import option_faults
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.surface import NativeSurface


def violations(
    recipe: Recipe,
    pattern: Pattern,
    environment: Environment,
    carriers: Carriers,
    seams: Iterable[Seam],
) -> list[SeamsError]:
    """The settings of a recipe that a seam or the Megatron does not allow.

    Args:
        recipe: Its ``[parallelism]``, ``[runtime]``, ``[megatron]`` and ``[smoke.megatron]``.
        pattern: Its layers.
        environment: The Megatron.
        carriers: The slots that carry the seams.
        seams: The chosen seams.

    Returns:
        A fault for each setting that a seam does not support, that this Megatron does not have or
        forbids, or that another part of the recipe decides.
    """
    return [
        *_unsupported(recipe, pattern, seams),
        *_wrong_options(recipe, seams),
        *layout_faults(recipe, pattern),
        *_separators(pattern, environment.surface),
        *native_keys(recipe, environment),
        *_fused(recipe, carriers),
    ]


def _unsupported(recipe: Recipe, pattern: Pattern, seams: Iterable[Seam]) -> list[SeamsError]:
    """Settings that a chosen seam's manifest does not declare under ``[supports]``."""
    spread = recipe.parallelism
    wanted = {
        "tensor-parallel": spread.tensor_parallel,
        "sequence-parallel": spread.sequence_parallel,
        "pipeline-parallel": max(spread.pipeline_parallel, len(pattern.stages)),
        "expert-parallel": spread.expert_parallel,
        "context-parallel": spread.context_parallel,
        "packed-sequences": recipe.runtime.packed_sequences,
        "inference": recipe.runtime.inference,
    }
    needed = [(name, value) for name, value in wanted.items() if value is True or value > 1]
    if not needed:
        return []
    return [
        Unsupported(
            asked=f"{capability} = {value} with {seam.claim}",
            found=f"its manifest does not say [supports] {capability} = true",
            next=f"change the setting, or ask {seam.owner}",
            subject=seam.name,
            key=capability,
        )
        for seam in sorted(seams, key=lambda seam: seam.name)
        for capability, value in needed
        if not seam.manifest.supports[capability]
    ]


def _wrong_options(recipe: Recipe, seams: Iterable[Seam]) -> Iterator[OptionsInvalid]:
    """Options that a chosen seam's manifest, where it lists them, does not have or accept."""
    for seam in sorted(seams, key=lambda seam: seam.name):
        options = seam.manifest.options
        if options is None:
            continue
        for fault in option_faults(options, recipe.seams.get(seam.name, {})):
            yield invalid_option(seam, fault)


def invalid_option(seam: Seam, fault: KeyFault) -> OptionsInvalid:
    """The fault of a recipe's option that a seam's manifest, or its own class, does not accept."""
    return OptionsInvalid(
        asked=f"valid options for {seam.claim}",
        found=fault.message,
        next="correct the key in the recipe",
        subject=seam.name,
        key=f"seams.{seam.name}.{fault.key}".rstrip("."),
    )


def _separators(pattern: Pattern, surface: NativeSurface) -> list[SeamsError]:
    """Stages and MTP depths in the pattern, which an older Megatron cannot spell."""
    wanted = []
    if len(pattern.stages) > 1:
        wanted.append((STAGE_BREAK, "stages"))
    if MTP_SEPARATOR in pattern.text:
        wanted.append((MTP_SEPARATOR, "MTP depths"))
    if surface.version is None:  # nothing is native, which is a fault of its own
        return []
    return [
        UpstreamForbids(
            asked=f"{what} in the pattern, by {character!r}",
            found=f"the patterns of megatron-core {surface.version} have "
            f"{' and '.join(surface.separators) or 'no separators'}",
            next="write the pattern without them, or take a Megatron that has them",
            key="model.pattern",
        )
        for character, what in wanted
        if character not in surface.separators
    ]


def _fused(recipe: Recipe, carriers: Carriers) -> Iterator[UpstreamForbids]:
    """Upstream's fused projection with a seam in the slot that it edits."""
    fused = recipe.megatron.get("mla_down_proj_fusion")
    if fused and any(symbol.slot == "mla_layer" for symbol in carriers.slots.values()):
        yield UpstreamForbids(
            asked="[megatron.mla_down_proj_fusion] with a seam in slot mla_layer",
            found="upstream's fusion edits the submodules of that slot's spec, which a seam does "
            "not have",
            next="turn the fusion off",
            key="megatron.mla_down_proj_fusion",
        )


@attrs.frozen(kw_only=True)
class Unused:
    """Settings for seams that nothing in a plan reads.

    Attributes:
        reasons: Those that refuse the plan: a name that fits nothing is most often a typing error.
        findings: Those for a superseded seam, which must not stop an upgrade.
    """

    reasons: tuple[UnusedSetting, ...]
    findings: tuple[UnusedSetting, ...]


def unused_settings(
    recipe: Recipe, families: Set[str], choices: Choices, chosen: Set[str]
) -> Unused:
    """The settings for seams in a recipe that nothing in its plan reads.

    Args:
        recipe: The recipe.
        families: The families of the decoder's layers and of the features.
        choices: Their providers.
        chosen: Names of the seams that the plan uses.
    """
    found = tuple(_unused(recipe, families, choices, chosen))
    return Unused(
        reasons=tuple(fault for fault, idle in found if not idle),
        findings=tuple(fault for fault, idle in found if idle),
    )


def _unused(
    recipe: Recipe, families: Set[str], choices: Choices, chosen: Set[str]
) -> Iterator[tuple[UnusedSetting, bool]]:
    """Each unused setting, and whether a superseded seam is the reason."""
    policy = recipe.policy
    retired = {seam.name for choice in choices.layers.values() for seam in choice.retires}
    for name in sorted(recipe.seams.keys() - chosen):
        yield _idle(f"seams.{name}", f"the plan uses no seam {name!r}"), name in retired
    for name in sorted(set(policy.experiments) - chosen):
        fault = _idle(f"policy.experiments: {name}", f"the plan uses no experiment {name!r}")
        yield fault, name in retired
    for family, name in sorted(policy.pin.items()):
        key = f"policy.pin.{family}"
        if family not in families:
            yield _idle(key, f"the model has no {family}"), False
        elif name not in chosen:
            yield _idle(key, f"{family} is not built by a seam"), True
    for number, reason in enumerate(recipe.justify or ()):
        if reason.seam not in chosen:
            fault = _idle(f"justify[{number}].seam", f"the plan uses no seam {reason.seam!r}")
            # The whole entry: one without its seam would be invalid.
            step = f"remove [[justify]] for {reason.seam!r} from the recipe, or correct its seam"
            yield attrs.evolve(fault, next=step), reason.seam in retired
    for entry in recipe.override:
        if entry.family not in families:
            yield _idle("override", f"the model has no {entry.family}"), False


def _idle(key: str, found: str) -> UnusedSetting:
    return UnusedSetting(
        asked=f"what [{key}] sets",
        found=found,
        next=f"remove [{key}] from the recipe, or correct its name",
        key=key,
    )
