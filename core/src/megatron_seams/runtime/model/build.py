"""Building a plan's model: upstream's ``HybridModel`` and stack, with the seams in it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_seams.errors import CannotRunHere, Refusal, SeamsError
from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.planning.plan import Layer, Plan
from megatron_seams.runtime import compat
from megatron_seams.runtime.backends.choice import ModelBackend, choose_backend
from megatron_seams.runtime.model.features import attach_features
from megatron_seams.runtime.model.seam_layers import SeamLayers
from megatron_seams.runtime.model.settings import ModelSettings, model_settings, rejected
from megatron_seams.runtime.model.stack import BackendStack, SeamHybridStack, refusal_behind
from megatron_seams.runtime.plugins import LoadedSeams, load_plugins
from megatron_seams.upstream.surface import Native

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig


def build_model(
    plan: Plan,
    *,
    settings: Mapping[str, Any] | None = None,
    backend: ModelBackend | None = None,
    pg_collection: ProcessGroupCollection | None = None,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
) -> compat.HybridModel:
    """Build the model of ``plan``, or one pipeline stage of it.

    Megatron's process groups exist already (on a CPU: :func:`.cpu.world.cpu_world`). A plan without
    a seam gives exactly what upstream gives: its own stack class with its own submodules; on the
    TE-free backend, its stack with another final norm.

    Args:
        plan: The model.
        settings: Native settings by upstream's names; the plan's own if None.
        backend: Linears, norms and native layers; what this machine has if None.
        pg_collection: The process groups; those of Megatron's ``parallel_state`` if None.
        pre_process: Whether this stage embeds.
        post_process: Whether this stage computes the loss.
        vp_stage: The model chunk, under virtual pipeline parallelism.

    Returns:
        The model, not wrapped.

    Raises:
        Refusal: With every reason: plugins that do not load, families that the machine cannot build
            (:class:`CannotRunHere`), settings that Megatron does not accept
            (:class:`SettingsInvalid`).
        SeamsError: What a seam's hook raised, or what it returned wrongly.
    """
    backend = backend or choose_backend()
    loaded, chosen = _prepared(plan, plan.megatron if settings is None else settings, backend)
    groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
    try:
        model = compat.build_hybrid_model(
            chosen.config,
            stack_spec(plan, chosen.config, loaded, backend),
            hybrid_layer_pattern=lowered_pattern(plan),
            pre_process=pre_process,
            post_process=post_process,
            pg_collection=groups,
            vp_stage=vp_stage,
            **chosen.arguments,
        )
    except Exception as error:
        refusal = refusal_behind(error)
        if refusal is not None:
            raise refusal from error
        if isinstance(error, ValueError | AssertionError | NotImplementedError):
            # How upstream's constructors refuse sizes that do not fit together.
            raise Refusal([rejected(error, plan)]) from error
        raise
    attach_features(
        model, plan, loaded, backend.provider, vocab_size=chosen.arguments["vocab_size"]
    )
    return model


def stack_spec(
    plan: Plan, config: "TransformerConfig", loaded: LoadedSeams, backend: ModelBackend
) -> ModuleSpec:
    """The spec of the plan's stack, for ``HybridModel``.

    Args:
        plan: The model.
        config: Its configuration.
        loaded: Its plugins.
        backend: Linears, norms and native layers.
    """
    submodules = backend.submodules(config)
    final_norm = backend.final_norm()
    norm = {} if final_norm is None else {"final_norm": final_norm}
    if plan.custom_layers():
        seam_layers = SeamLayers.of_plan(plan, loaded, backend.provider)
        params = {"seam_layers": seam_layers, **norm}
        return ModuleSpec(module=SeamHybridStack, params=params, submodules=submodules)
    stack = BackendStack if norm else compat.HybridStack
    return ModuleSpec(module=stack, params=norm, submodules=submodules)


def cannot_run(plan: Plan, backend: ModelBackend) -> list[CannotRunHere]:
    """One fault for each native family of the plan that ``backend`` cannot build."""
    where: dict[str, list[Layer]] = {}
    for layer in (*plan.layers, *plan.mtp):
        if isinstance(layer.provider, Native):
            where.setdefault(layer.family, []).append(layer)
    faults = []
    for family, layers in where.items():
        reason = backend.why_not(family)
        if reason is None:
            continue
        tokens = ", ".join(dict.fromkeys(repr(layer.token) for layer in layers))
        faults.append(
            CannotRunHere(
                asked=f"native {family} (token {tokens}, {len(layers)} layers) on this machine",
                found=f"{reason}; the backend here is {backend.name!r}",
                next="run it where Transformer Engine and a GPU are, or leave these layers out",
                subject=family,
                positions=tuple(it.position for it in plan.layers if it.family == family),
            )
        )
    return faults


def _prepared(
    plan: Plan, settings: Mapping[str, Any], backend: ModelBackend
) -> tuple[LoadedSeams, ModelSettings]:
    """Plugins and configuration, or every reason against either."""
    faults: list[SeamsError] = [*cannot_run(plan, backend)]
    loaded: LoadedSeams | None = None
    chosen: ModelSettings | None = None
    try:
        loaded = load_plugins(plan.seams, plan.options)
    except Refusal as refusal:
        faults.extend(refusal.reasons)
    try:
        chosen = model_settings(plan, settings, backend.settings())
    except Refusal as refusal:
        faults.extend(refusal.reasons)
    if faults or loaded is None or chosen is None:
        raise Refusal(faults)
    return loaded, chosen
