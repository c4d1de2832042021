"""What a recipe demands beside its layers: settings held against the seams and the Megatron."""

from collections.abc import Iterable

from megatron_seams.errors import SeamsError, UnknownNativeKey, Unsupported, UpstreamForbids
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.lowering import Carriers
from megatron_seams.recipes.pattern import MTP_SEPARATOR, STAGE_BREAK, Pattern
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.surface import NativeSurface

#: `[megatron]` keys that another table of the recipe decides.
_ELSEWHERE = {
    "num_layers": "model.depth",
    "hybrid_layer_pattern": "model.pattern",
    "hybrid_override_pattern": "model.pattern",
    "mtp_num_layers": "the MTP suffix of model.pattern",
    "tensor_model_parallel_size": "parallelism.tensor-parallel",
    "pipeline_model_parallel_size": "parallelism.pipeline-parallel",
    "virtual_pipeline_model_parallel_size": "the '|' of model.pattern",
    "expert_model_parallel_size": "parallelism.expert-parallel",
    "context_parallel_size": "parallelism.context-parallel",
    "sequence_parallel": "parallelism.sequence-parallel",
    "is_hybrid_model": "model.pattern",
}


def unmet_demands(
    recipe: Recipe,
    pattern: Pattern,
    environment: Environment,
    carriers: Carriers,
    seams: Iterable[Seam],
) -> list[SeamsError]:
    """What of a recipe's settings cannot be had.

    Args:
        recipe: Its ``[parallelism]``, ``[runtime]``, ``[megatron]`` and ``[smoke.megatron]``.
        pattern: Its layers.
        environment: The Megatron.
        carriers: Which slots the seams ride on.
        seams: The chosen seams.

    Returns:
        A fault for each setting that a seam does not support, that this Megatron does not have or
        forbids, or that another table decides.
    """
    return [
        *_unsupported(recipe, pattern, seams),
        *_stages(recipe, pattern),
        *_separators(pattern, environment.surface),
        *_native_keys(recipe, environment, carriers),
    ]


def _unsupported(recipe: Recipe, pattern: Pattern, seams: Iterable[Seam]) -> list[SeamsError]:
    """Hold the recipe's settings against what each chosen seam says it supports."""
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


def _stages(recipe: Recipe, pattern: Pattern) -> list[SeamsError]:
    """Upstream's own rule: segments, or layers where there are none, divide evenly over stages."""
    size = recipe.parallelism.pipeline_parallel
    count, unit = len(pattern.stages), "stages in the pattern"
    if count == 1:
        count, unit = pattern.depth, "layers"
    if count % size == 0:
        return []
    return [
        UpstreamForbids(
            asked=f"pipeline-parallel = {size}",
            found=f"{count} {unit} do not divide evenly",
            next="change pipeline-parallel, or write the stages into the pattern with '|'",
            key="parallelism.pipeline-parallel",
        )
    ]


def _separators(pattern: Pattern, surface: NativeSurface) -> list[SeamsError]:
    """Stages and MTP depths are spelled with characters that an older Megatron does not have."""
    wanted = []
    if len(pattern.stages) > 1:
        wanted.append((STAGE_BREAK, "stages"))
    if pattern.mtp_depths:
        wanted.append((MTP_SEPARATOR, "MTP depths"))
    if surface.version is None:  # nothing is native, which has been said already
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


def _native_keys(recipe: Recipe, environment: Environment, carriers: Carriers) -> list[SeamsError]:
    """Every key of ``[megatron]`` is one that this Megatron has and that no other table decides."""
    faults: list[SeamsError] = []
    keys = [f"megatron.{key}" for key in recipe.megatron]
    keys += [f"smoke.megatron.{key}" for key in recipe.smoke.megatron]
    known = environment.settings() if keys and environment.surface.version else None
    for path in keys:
        key = path.rpartition(".")[2]
        if key in _ELSEWHERE:
            found, advice = f"{_ELSEWHERE[key]} decides it", "set it there"
        elif known is not None and not known.knows(key):
            found = f"megatron-core {environment.surface.version} has no such setting"
            if near := known.nearest(key):
                found += f"; the names most like it are {', '.join(near)} (none is applied)"
            advice = "correct the key; it is a field of TransformerConfig or a model argument"
        else:
            continue
        faults.append(
            UnknownNativeKey(asked=f"[{path}]", found=found, next=advice, subject=key, key=path)
        )
    fused = recipe.megatron.get("mla_down_proj_fusion")
    if fused and any(symbol.slot == "mla_layer" for symbol in carriers.slots.values()):
        faults.append(
            UpstreamForbids(
                asked="[megatron.mla_down_proj_fusion] with a seam in slot mla_layer",
                found="upstream's fusion edits the submodules of that slot's spec, which a seam "
                "does not have",
                next="turn the fusion off",
                key="megatron.mla_down_proj_fusion",
            )
        )
    return faults
