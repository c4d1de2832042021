"""A plan's native settings as Megatron's own configuration and its model's arguments."""

import dataclasses
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from megatron_seams.errors import Refusal, SettingsInvalid
from megatron_seams.planning.derived import BUILDERS, decided_fields, is_latent, usual_fields
from megatron_seams.planning.plan import Plan
from megatron_seams.recipes.pipeline import one_rank
from megatron_seams.runtime.compat import HybridModel
from megatron_seams.runtime.model.spelled import misspelled, spelled

#: Parameters of the model's constructor that a recipe does not set.
_OURS = BUILDERS | {"self"}
#: How the variables of Transformer Engine, NCCL, CUDA and torch are spelled in upstream's messages.
_VARIABLE: Final = re.compile(r"\b(?:NVTE|NCCL|CUDA|CUBLAS|TORCH|MAMBA)_[A-Z0-9_]+\b")


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

    Layers, parallel sizes and what upstream's trainer derives follow from the plan
    (:mod:`megatron_seams.planning.derived`). A setting that both take (``rotary_base``) goes to
    both.

    Args:
        plan: The model.
        settings: Upstream's field and argument names -> values; types, activations and members of
            enumerations by name.
        backend: Fields that the backend decides, over ``settings``.

    Raises:
        Refusal: With a :class:`SettingsInvalid` for each setting that is unknown or misspelled, or
            for an error of Megatron's own checks.
    """
    kind = MLATransformerConfig if is_latent(plan) else TransformerConfig
    fields = {field.name: field.type for field in dataclasses.fields(kind) if field.init}
    arguments = frozenset(inspect.signature(HybridModel.__init__).parameters) - _OURS
    unknown = sorted(settings.keys() - fields.keys() - arguments)
    faults = [
        *misspelled(settings),
        *(_unknown(key, kind, plan) for key in unknown),
        *_one_stage(plan),
        *(_missing(key) for key in ("vocab_size", "max_sequence_length") if key not in settings),
    ]
    if faults:
        raise Refusal(faults)
    given = {**usual_fields(plan, settings), **settings, **decided_fields(plan), **backend}
    config = {key: value for key, value in given.items() if key in fields}
    try:
        checked = kind(**{key: spelled(key, value, fields[key]) for key, value in config.items()})
    except Exception as error:  # upstream's checks raise errors of many types
        raise Refusal([rejected(error, plan)]) from error
    return ModelSettings(
        config=checked,
        arguments={key: value for key, value in settings.items() if key in arguments},
    )


def rejected(error: BaseException, plan: Plan) -> SettingsInvalid:
    """The fault for an ``error`` of Megatron's own checks.

    It is the recipe's, unless upstream names a variable of the environment that is set.
    """
    named = sorted(set(_VARIABLE.findall(str(error))) & os.environ.keys())
    if named:
        return SettingsInvalid(
            asked=f"Megatron's configuration for {plan.name}",
            found=f"{type(error).__name__}: {error} (in the environment: "
            f"{', '.join(f'{name}={os.environ[name]}' for name in named)})",
            next="unset or change the environment variables that upstream names; the recipe is not "
            "at fault",
            subject=named[0],
        )
    return SettingsInvalid(
        asked=f"Megatron's configuration for {plan.name}",
        found=f"{type(error).__name__}: {error}",
        next="correct the recipe's [megatron] (its keys are upstream's own)",
        subject=plan.name,
        key="megatron",
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
    fault = one_rank(plan.parallelism, plan.pattern)
    if fault is not None:
        yield SettingsInvalid(
            asked=fault.asked, found=fault.found, next=fault.next, subject=plan.name, key=fault.key
        )


def _missing(key: str) -> SettingsInvalid:
    return SettingsInvalid(
        asked=f"[megatron] {key}",
        found="the recipe does not set it and Megatron has no default",
        next="set it",
        subject=key,
        key=f"megatron.{key}",
    )
