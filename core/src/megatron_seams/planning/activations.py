"""Activations: their names in a recipe, and the flags of upstream's trainer that ask for them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

#: Configuration fields that one flag sets together.
KEYS: Final = ("activation_func", "gated_linear_unit")

#: The names that a recipe's ``activation_func`` may have -> where the function is: torch's name of
#: it, or the file inside ``megatron`` and the name there that upstream's trainer imports it by.
ACTIVATIONS: Final[Mapping[str, str | tuple[str, str]]] = MappingProxyType(
    {
        "gelu": "torch.nn.functional.gelu",
        "quick_gelu": ("core/fusions/fused_bias_geglu.py", "quick_gelu"),
        "relu": "torch.nn.functional.relu",
        "silu": "torch.nn.functional.silu",
        "squared_relu": ("core/activations.py", "squared_relu"),
    }
)

#: Activation and whether it is gated -> the flag that asks for both; without one it is `gelu`.
#: Upstream's trainer sets both fields by hand, in `core_transformer_config_from_args`.
FLAGS: Final[Mapping[tuple[str, bool], str | None]] = MappingProxyType(
    {
        ("gelu", False): None,
        ("silu", True): "--swiglu",
        ("squared_relu", False): "--squared-relu",
        ("quick_gelu", True): "--quick-geglu",
    }
)


def advice(activation: str, gated: bool) -> str:
    """The recipe's settings by which a flag asks for the activation."""
    nearest = [
        f'activation_func = "{name}" with gated_linear_unit = {str(with_gate).lower()}'
        for name, with_gate in FLAGS
        if name == activation or (with_gate and gated)
    ]
    return " or ".join(nearest) or "one of " + ", ".join(
        f'"{name}" with gated_linear_unit = {str(gated).lower()}' for name, gated in FLAGS
    )
