"""Building a plan's model: upstream's ``HybridModel`` and stack, with the seams in it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_seams.errors import BuildDiffers, Refusal
from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.planning.plan import Plan
from megatron_seams.records.plan_json import describe_plan
from megatron_seams.records.software import software
from megatron_seams.runtime import compat
from megatron_seams.runtime.agreement.alike import made_alike
from megatron_seams.runtime.backends.backend import ModelBackend, choose_backend
from megatron_seams.runtime.model.features import attach_features
from megatron_seams.runtime.model.inspection import mtp_differences, stack_differences
from megatron_seams.runtime.model.prepare import PreparedPlan, attempt, prepare
from megatron_seams.runtime.model.refused import refusal_behind
from megatron_seams.runtime.model.settings import ModelSettings, model_settings, rejected
from megatron_seams.runtime.model.stack import BackendStack, SeamHybridStack

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
    on_all_ranks: bool = True,
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
        on_all_ranks: Whether every rank of torch's process group builds a model of this plan; they
            then agree before any builds (:mod:`megatron_seams.runtime.agreement`).

    Returns:
        The model, not wrapped.

    Raises:
        Refusal: With every reason: plugins that do not load, families that the machine cannot build
            (:class:`CannotRunHere`), settings that Megatron does not accept
            (:class:`SettingsInvalid`), a model that is not the plan's (:class:`BuildDiffers`).
        SeamsError: A seam's hook raised it, or returned something else than it must; as
            :class:`RanksDiffer`, another rank builds another model, cannot, or is silent.
    """
    given = plan.megatron if settings is None else settings
    here = backend or choose_backend()

    def parts() -> tuple[PreparedPlan, ModelSettings]:
        prepared, unprepared = attempt(lambda: prepare(plan, here))
        chosen, invalid = attempt(lambda: model_settings(plan, given, here.settings()))
        if prepared is None or chosen is None:
            raise Refusal((*unprepared, *invalid))
        return prepared, chosen

    if on_all_ranks:
        prepared, chosen = made_alike("plan", parts, lambda _: _description(plan, given, here))
    else:
        prepared, chosen = parts()
    groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
    try:
        model = compat.build_hybrid_model(
            chosen.config,
            stack_spec(prepared, chosen.config),
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
        if isinstance(error, ValueError | AssertionError | NotImplementedError | ZeroDivisionError):
            # How upstream's constructors refuse sizes that do not fit together.
            raise Refusal([rejected(error, plan)]) from error
        raise
    if faults := tuple(model_differences(model, prepared, chosen.config, groups, vp_stage)):
        raise Refusal(faults)
    attach_features(model, prepared, vocab_size=chosen.arguments["vocab_size"])
    return model


def _description(plan: Plan, settings: Mapping[str, Any], backend: ModelBackend) -> dict[str, Any]:
    """The model this rank is about to build, as JSON values that are the same in every process."""
    return {
        "plan": describe_plan(plan),
        "options": {name: _said(dict(given)) for name, given in plan.options.items()},
        "settings": _said(dict(settings)),
        "backend": backend.name,
        "software": software(),
    }


def _said(value: Any) -> Any:
    """A setting as a JSON value; functions, types and members by name, without an address."""
    if isinstance(value, Mapping):
        return {str(key): _said(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_said(part) for part in value]
    if value is None or isinstance(value, str | int | float):
        return value
    named = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{named}" if named else str(value).partition(" at 0x")[0]


def stack_spec(prepared: PreparedPlan, config: "TransformerConfig") -> ModuleSpec:
    """The spec of the plan's stack, for ``HybridModel``.

    Args:
        prepared: The plan.
        config: The model's configuration.
    """
    submodules, norm = prepared.backend.submodules(config), prepared.final_norm()
    if prepared.plan.custom_layers():
        params = {"prepared": prepared, **norm}
        return ModuleSpec(module=SeamHybridStack, params=params, submodules=submodules)
    stack = BackendStack if norm else compat.HybridStack
    return ModuleSpec(module=stack, params=norm, submodules=submodules)


def model_differences(
    model: compat.HybridModel,
    prepared: PreparedPlan,
    config: "TransformerConfig",
    groups: ProcessGroupCollection,
    vp_stage: int | None = None,
) -> Iterator[BuildDiffers]:
    """Every way in which a constructed stage is not the plan's.

    A stack with seams has compared its layers already, while it knew what its slots had built.
    """
    stack, plan = model.decoder, prepared.plan
    submodules = prepared.backend.submodules(config)
    if not isinstance(stack, SeamHybridStack):
        stage = (vp_stage or 0) * groups.pp.size() + groups.pp.rank()
        parts = tuple(plan.pipeline.slices())
        layers = plan.layers[parts[stage]] if stage < len(parts) else ()
        yield from stack_differences(stack, layers, submodules, {})
    yield from mtp_differences(model, plan, submodules)
