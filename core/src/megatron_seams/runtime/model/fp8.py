"""Widths that fp8 takes: Transformer Engine's products want multiples of 16 on every rank."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from megatron.core.fp8_utils import is_first_last_bf16_layer
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import nn

from megatron_seams.errors import UpstreamForbids

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig

#: What cuBLAS asks of the rows and columns of an fp8 matrix. Transformer Engine checks it in the
#: first backward pass, by an assertion that names no layer.
MULTIPLE: Final = 16
_ENGINE: Final = "transformer_engine"


def fp8_faults(
    config: "TransformerConfig", built: Mapping[int, nn.Module]
) -> Iterator[UpstreamForbids]:
    """A fault for each linear of a seam's layers, on this rank, that fp8 cannot multiply.

    Layers that ``first_last_layers_bf16`` leaves in bfloat16 have none.

    Args:
        config: The model's configuration; without ``fp8`` there is no fault.
        built: Global layer number -> the layer that a seam built.
    """
    if not getattr(config, "fp8", None):
        return
    odd: dict[tuple[str, tuple[int, int]], list[int]] = {}
    for number, layer in built.items():
        if is_first_last_bf16_layer(config, number - 1):
            continue
        for name, shape in linear_widths(layer):
            if any(width % MULTIPLE for width in shape):
                odd.setdefault((name, shape), []).append(number)
    for (name, (rows, columns)), numbers in odd.items():
        yield UpstreamForbids(
            asked=f"fp8 = {config.fp8!r} for linear {name} of a seam's layers",
            found=f"its weight on this rank has {rows} outputs and {columns} inputs, and both must "
            f"be multiples of {MULTIPLE}",
            next="choose the seam's sizes, or the number of tensor-parallel ranks, so that they "
            "are; or turn fp8 off",
            subject="fp8",
            positions=tuple(numbers),
        )


def linear_widths(layer: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    """The name, and the outputs and inputs on this rank, of each weight that fp8 would multiply.

    Those are the matrices of upstream's parallel linears and of Transformer Engine's modules, some
    of which have several: a fused feed-forward layer, the experts of a grouped linear.
    """
    for name, module in layer.named_modules():
        if _multiplies(module):
            for key, weight in module.named_parameters(recurse=False):
                if weight.dim() == 2:
                    whole = f"{name}.{key}".lstrip(".")
                    yield name if key == "weight" else whole, (weight.shape[0], weight.shape[1])


def _multiplies(module: nn.Module) -> bool:
    engine = any(each.__module__.partition(".")[0] == _ENGINE for each in type(module).__mro__)
    return engine or isinstance(module, ColumnParallelLinear | RowParallelLinear)
