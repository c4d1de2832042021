"""A plan's native settings as Megatron's own configuration and its model's arguments."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs
import torch
from megatron.core.activations import quick_gelu, squared_relu
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from torch.nn import functional

from megatron_seams.errors import Refusal, SettingsInvalid
from megatron_seams.families import LATENT
from megatron_seams.planning.plan import Plan
from megatron_seams.runtime.compat import SPARSE, STACK_ARGUMENT, HybridModel

_DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

#: Fields whose values are Python objects, spelled in a recipe by name.
_SPELLED: Final[Mapping[str, Mapping[str, Any]]] = {
    "params_dtype": _DTYPES,
    "pipeline_dtype": _DTYPES,
    "autocast_dtype": _DTYPES,
    "activation_func": {
        "gelu": functional.gelu,
        "quick_gelu": quick_gelu,
        "relu": functional.relu,
        "silu": functional.silu,
        "squared_relu": squared_relu,
    },
}

#: Model arguments that the builder passes itself.
_OURS: Final = frozenset(
    {
        "self",
        "config",
        STACK_ARGUMENT,
        "hybrid_layer_pattern",
        "pg_collection",
        "pre_process",
        "post_process",
        "vp_stage",
    }
)


@attrs.frozen(kw_only=True)
class ModelSettings:
    """The configuration and the arguments of upstream's model.

    Attributes:
        config: Megatron's configuration, which has passed its own checks.
        arguments: The arguments of the model's constructor that a recipe may set.
    """

    config: TransformerConfig
    arguments: Mapping[str, Any]


def model_settings(
    plan: Plan, settings: Mapping[str, Any], backend: Mapping[str, Any]
) -> ModelSettings:
    """Sort native settings into Megatron's configuration and its model's arguments.

    The number of layers, MTP depths, the parallel sizes and ``multi_latent_attention`` follow from
    the plan. A setting that both take (``rotary_base``) goes to both.

    Args:
        plan: The model.
        settings: Upstream's field and argument names -> values; dtypes and activations by name.
        backend: Fields that the backend decides, over ``settings``.

    Raises:
        Refusal: With a :class:`SettingsInvalid` for each setting that is unknown or misspelled, or
            for an error of Megatron's own checks.
    """
    latent = not plan.families.isdisjoint(LATENT)
    kind = MLATransformerConfig if latent else TransformerConfig
    fields = {field.name for field in dataclasses.fields(kind) if field.init}
    arguments = frozenset(inspect.signature(HybridModel.__init__).parameters) - _OURS
    unknown = sorted(settings.keys() - fields - arguments)
    faults = [
        *_misspelled(settings),
        *(_unknown(key, kind, plan) for key in unknown),
        *_one_stage(plan),
        *(_missing(key) for key in ("vocab_size", "max_sequence_length") if key not in settings),
    ]
    if faults:
        raise Refusal(faults)
    wanted = {key: _value(key, value) for key, value in settings.items()}
    config = {key: value for key, value in wanted.items() if key in fields}
    config |= _derived(plan, latent)
    config |= SPARSE if "dsa" in plan.families else {}
    config |= {k: v for k, v in backend.items() if k in fields}
    config.setdefault("params_dtype", _dtype(config))
    config.setdefault("pipeline_dtype", config["params_dtype"])
    try:
        checked = kind(**config)
    except Exception as error:  # upstream's checks raise errors of many types
        raise Refusal([rejected(error, plan)]) from error
    return ModelSettings(
        config=checked,
        arguments={key: value for key, value in wanted.items() if key in arguments},
    )


def rejected(error: BaseException, plan: Plan) -> SettingsInvalid:
    """The fault for an ``error`` of Megatron's own checks."""
    return SettingsInvalid(
        asked=f"Megatron's configuration for {plan.name}",
        found=f"{type(error).__name__}: {error}",
        next="correct the recipe's [megatron] (its keys are upstream's own)",
        subject=plan.name,
        key="megatron",
    )


def _derived(plan: Plan, latent: bool) -> dict[str, Any]:
    """The fields of the configuration that follow from the plan."""
    spread = plan.parallelism
    stages = len(plan.pattern.stages)
    virtual = stages // spread.pipeline_parallel if spread.pipeline_parallel > 1 else 1
    return {
        "num_layers": len(plan.layers),
        "mtp_num_layers": plan.pattern.mtp_depths or None,
        "is_hybrid_model": True,
        "multi_latent_attention": latent,
        "tensor_model_parallel_size": spread.tensor_parallel,
        "sequence_parallel": spread.sequence_parallel,
        "pipeline_model_parallel_size": spread.pipeline_parallel,
        "virtual_pipeline_model_parallel_size": virtual if virtual > 1 else None,
        "expert_model_parallel_size": spread.expert_parallel,
        "context_parallel_size": spread.context_parallel,
    }


def _dtype(config: Mapping[str, Any]) -> torch.dtype:
    """The parameters' type as upstream's own arguments derive it."""
    if config.get("bf16"):
        return torch.bfloat16
    return torch.float16 if config.get("fp16") else torch.float32


def _value(key: str, value: Any) -> Any:
    """The Python object that a setting spells by name; the value itself where it spells none."""
    return _SPELLED[key][value] if key in _SPELLED and isinstance(value, str) else value


def _misspelled(settings: Mapping[str, Any]) -> Iterator[SettingsInvalid]:
    """One fault for each setting that is spelled by name, with a name that there is not."""
    for key, value in settings.items():
        names = _SPELLED.get(key)
        if names is not None and isinstance(value, str) and value not in names:
            yield SettingsInvalid(
                asked=f"[megatron] {key} = {value!r}",
                found=f"it is one of {', '.join(names)}",
                next="correct the value",
                subject=key,
                key=f"megatron.{key}",
            )


def _unknown(key: str, kind: type, plan: Plan) -> SettingsInvalid:
    return SettingsInvalid(
        asked=f"[megatron] {key}",
        found=f"neither {kind.__name__} nor {HybridModel.__name__} has it, for the layers of "
        f"{plan.name}",
        next="correct the key, or remove it",
        subject=key,
        key=f"megatron.{key}",
    )


def _one_stage(plan: Plan) -> Iterator[SettingsInvalid]:
    """A fault where the pattern has several stages and one pipeline rank is to build them."""
    # Upstream picks a segment by pipeline rank: one rank would get the first stage and no word of
    # the others.
    stages = len(plan.pattern.stages)
    if stages == 1 or plan.parallelism.pipeline_parallel > 1:
        return
    yield SettingsInvalid(
        asked=f"the {stages} stages of pattern {plan.pattern.text!r}",
        found="pipeline-parallel is 1, and one rank builds one stage",
        next=f"set pipeline-parallel to {stages} or one of its divisors above 1, or leave out '|'",
        subject=plan.name,
        key="parallelism.pipeline-parallel",
    )


def _missing(key: str) -> SettingsInvalid:
    return SettingsInvalid(
        asked=f"[megatron] {key}",
        found="the recipe does not set it and Megatron has no default",
        next="set it",
        subject=key,
        key=f"megatron.{key}",
    )
