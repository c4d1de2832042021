"""The parts of a mixer in upstream's ``MambaLayer`` around its recurrence.

``MambaLayer`` brings norm, residual and dropout, and builds the mixer from a ``ModuleSpec``, whose
``submodules`` are :class:`Projections`: the backend's linears into and out of the recurrence. In
between, each tensor-parallel rank computes with heads of its own, from parameters that
:func:`split_parameter` cuts.

Importing this module imports torch. Megatron is imported where a parameter is made.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from torch import Tensor, nn

from megatron_seams.runtime.sharding import own_rows

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig
    from torch.distributed import ProcessGroup

#: No head begins with a smaller time step: Mamba's ``dt_init_floor``.
DT_FLOOR: Final = 1e-4


@attrs.frozen(kw_only=True)
class Projections:
    """A mixer's linears, without biases.

    Attributes:
        in_proj: The column parallel linear's class.
        out_proj: The row parallel linear's class.
    """

    in_proj: type
    out_proj: type

    @classmethod
    def of(cls, backend: Any) -> "Projections":
        """Take the classes of the backend that builds the rest of the model.

        Args:
            backend: As a hook's context has it.
        """
        return cls(in_proj=backend.column_parallel_linear(), out_proj=backend.row_parallel_linear())

    def into(
        self,
        channels: Mapping[str, int],
        *,
        width: int,
        config: "TransformerConfig",
        tp_group: "ProcessGroup",
    ) -> Any:
        """Build the projection from the model's width to the mixer's channels.

        Each part is divided over the ranks by itself: a rank's output is its share of each, side
        by side. A checkpoint needs :meth:`.sharding.ShardedModule.divided_parts` for the weight.

        Args:
            channels: Each part's name -> its width over all ranks, in order.
            width: The model's.
            config: The model's configuration.
            tp_group: The tensor-parallel ranks.
        """
        linear: Any = self.in_proj(
            width,
            sum(channels.values()),
            config=config,
            init_method=config.init_method,
            gather_output=False,
            bias=False,
            skip_bias_add=False,
            is_expert=False,
            tp_comm_buffer_name="fc1",
            tp_group=tp_group,
        )
        _mark_parts(linear.weight, channels.values(), tp_group)
        return linear

    def out_of(
        self, inner: int, *, width: int, config: "TransformerConfig", tp_group: "ProcessGroup"
    ) -> Any:
        """Build the projection from the mixer's outputs back to the model's width.

        Args:
            inner: The channels of the outputs over all ranks.
            width: The model's.
            config: The model's configuration.
            tp_group: The tensor-parallel ranks.
        """
        return self.out_proj(
            inner,
            width,
            config=config,
            init_method=config.output_layer_init_method,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=True,
            is_expert=False,
            tp_comm_buffer_name="fc2",
            tp_group=tp_group,
        )


def split_parameter(
    whole: Tensor, tp_group: "ProcessGroup", parts: Iterable[int] | None = None
) -> nn.Parameter:
    """Make a parameter of this rank's rows.

    Every rank draws the whole, from the random state that Megatron gives all ranks of a model
    alike, so that a seed means the same values at every tensor-parallel size.

    Args:
        whole: [rows, ...].
        tp_group: The tensor-parallel ranks.
        parts: The rows of each part, where there are several and the ranks divide each by itself.

    Returns:
        [rows / ranks, ...], with the marks by which upstream knows a divided weight.
    """
    from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

    rows = [whole.shape[0]] if parts is None else list(parts)
    parameter = nn.Parameter(own_rows(whole, rows, tp_group))
    set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0, stride=1)
    if parts is not None:
        _mark_parts(parameter, rows, tp_group)
    return parameter


def _mark_parts(weight: Any, parts: Iterable[int], tp_group: "ProcessGroup") -> None:
    """Say the parts' rows on a rank, where upstream's resharding of a running model reads them."""
    weight.partition_sizes = [rows // tp_group.size() for rows in parts]


def parameter_device(config: "TransformerConfig") -> torch.device | int | str:
    """Say where a model's parameters are made."""
    return "cpu" if config.use_cpu_initialization else torch.cuda.current_device()


def initial_dt_bias(
    heads: int, device: torch.device | int | str, *, smallest: float = 1e-3, largest: float = 0.1
) -> Tensor:
    """Draw the bias of a time step Δ = softplus(x + bias), Δ log-uniform at x = 0.

    Mamba's, whose range the defaults are (arXiv:2312.00752).

    Args:
        heads: How many.
        device: Where the bias is made.
        smallest: Of Δ; none is below :data:`DT_FLOOR`.
        largest: Of Δ.

    Returns:
        softplus⁻¹(Δ), [heads] float32.
    """
    low, high = math.log(smallest), math.log(largest)
    dt = torch.empty(heads, device=device).uniform_(low, high).exp_().clamp_(min=DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))
