"""Values of Megatron's configuration that a recipe spells by name."""

import enum
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from megatron.core.activations import squared_relu
from megatron.core.fusions.fused_bias_geglu import quick_gelu
from torch.nn import functional

from megatron_seams.errors import SettingsInvalid
from megatron_seams.upstream.annotations import DTYPES

#: The functions that ``activation_func`` may name: those that upstream's trainer takes.
ACTIVATIONS: Final[Mapping[str, Any]] = {
    "gelu": functional.gelu,
    "quick_gelu": quick_gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "squared_relu": squared_relu,
}
_ACTIVATION: Final = "activation_func"


def spelled(key: str, value: Any, annotation: Any) -> Any:
    """The object that a value names: a function, torch's type, a member; else the value itself.

    Args:
        key: The field.
        value: A recipe's value.
        annotation: The field's type, as upstream's dataclass has it.
    """
    if key == _ACTIVATION and isinstance(value, str):
        return ACTIVATIONS[value]
    return _of_type(value, annotation)


def misspelled(settings: Mapping[str, Any]) -> Iterator[SettingsInvalid]:
    """A fault for an activation that there is not.

    Other names are compared with upstream's annotations when a recipe is resolved.
    """
    value = settings.get(_ACTIVATION)
    if isinstance(value, str) and value not in ACTIVATIONS:
        yield SettingsInvalid(
            asked=f"[megatron] {_ACTIVATION} = {value!r}",
            found=f"it is one of {', '.join(ACTIVATIONS)}",
            next="correct the value",
            subject=_ACTIVATION,
            key=f"megatron.{_ACTIVATION}",
        )


def _of_type(value: Any, annotation: Any) -> Any:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        # A value that upstream takes as text stays text, although an enumeration may have the name.
        plain = isinstance(value, str) and str in parts
        found = (_of_type(value, part) for part in parts if part is not type(None))
        return value if plain else next((each for each in found if each is not value), value)
    if isinstance(value, list | tuple):
        if origin is list and str not in parts:
            return [_of_type(each, parts[0]) for each in value]
        return tuple(value) if origin is tuple else value
    if not isinstance(value, str):
        return value
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return annotation[value] if value in annotation.__members__ else value
    return getattr(torch, DTYPES[value]) if annotation is torch.dtype and value in DTYPES else value
