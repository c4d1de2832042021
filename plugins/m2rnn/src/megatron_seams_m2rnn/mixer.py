"""The M²RNN mixer, as upstream's own ``MambaLayer`` calls it.

    in_proj → [q k v | f | g]
    q, k, v = SiLU(causal depthwise convolution)
    f       = exp(-exp(A_log) · softplus(f + dt_bias))
    y       = recurrence(q, k, v, W, f) + v · D
    out     = out_proj(RMSNorm(y · SiLU(g)))

(arXiv:2603.14360.) There are no biases. Norm, residual and dropout around it are ``MambaLayer``'s.
"""

import math
from typing import TYPE_CHECKING

import attrs
import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn
from torch.nn import functional

from megatron_seams.errors import Unsupported
from megatron_seams_m2rnn.convolution import causal_convolution
from megatron_seams_m2rnn.documents import document_spans, positions
from megatron_seams_m2rnn.gate import forget_gate, initial_decay, initial_dt_bias
from megatron_seams_m2rnn.operator import m2rnn
from megatron_seams_m2rnn.options import Options

if TYPE_CHECKING:
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.transformer_config import TransformerConfig


@attrs.frozen(kw_only=True)
class M2RNNMixerSubmodules:
    """The mixer's projections, from the backend that builds the rest of the model.

    Attributes:
        in_proj: The column parallel linear.
        out_proj: The row parallel linear.
    """

    in_proj: type
    out_proj: type


class M2RNNMixer(MegatronModule):  # type: ignore[misc]  # Megatron ships no types
    """Mix along the sequence with a matrix-state recurrent network.

    Args:
        config: The model's configuration.
        submodules: The projections.
        options: The seam's options.
        d_model: The model's width.
        layer_number: The 1-based global number of the layer; nothing here depends on it.
        pg_collection: The process groups; tensor and context parallel size are 1.
        pp_layer_offset: The number of layers on earlier pipeline stages; likewise unused.
        name: The module's place in the model; likewise unused.

    Raises:
        ValueError: Head counts that do not fit, or a parallelism that the mixer does not support.
    """

    def __init__(
        self,
        config: "TransformerConfig",
        submodules: M2RNNMixerSubmodules,
        options: Options,
        d_model: int,
        layer_number: int,
        pg_collection: "ProcessGroupCollection",
        pp_layer_offset: int = 0,  # noqa: ARG002 - part of MambaLayer's call
        name: str | None = None,  # noqa: ARG002 - likewise
    ) -> None:
        super().__init__(config)
        fault = parallel_fault(pg_collection)
        if fault is not None:
            # build_module re-raises type(error)(message), which only a plain exception survives.
            raise ValueError(str(fault))
        self.layer_number = layer_number
        self.tp_group = pg_collection.tp
        self.options = options
        self.heads = options.head_counts(d_model)
        self.clip = None if math.isinf(options.state_gradient_clip) else options.state_gradient_clip

        heads, K, V = self.heads, options.K, options.V
        self.qkv_sizes = [heads.q * K, heads.k * K, heads.v * V]
        inner = heads.state * V
        self.in_proj = submodules.in_proj(
            d_model,
            sum(self.qkv_sizes) + heads.f + inner,
            config=config,
            init_method=config.init_method,
            gather_output=False,
            bias=False,
            skip_bias_add=False,
            is_expert=False,
            tp_group=pg_collection.tp,
        )
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        kind = {"device": device, "dtype": config.params_dtype}
        # The default of nn.Conv1d: uniform within one over the square root of the taps.
        bound = options.conv_size**-0.5
        taps = torch.empty(sum(self.qkv_sizes), options.conv_size, **kind)
        self.conv_weight = nn.Parameter(taps.uniform_(-bound, bound))
        self.A_log = nn.Parameter(initial_decay(heads.f, device))
        self.dt_bias = nn.Parameter(initial_dt_bias(heads.f, device))
        self.W = nn.Parameter(torch.eye(V, **kind).repeat(heads.W, 1, 1))
        # One dimension, since Megatron decays the weights that have more, and D is not decayed.
        self.D = nn.Parameter(torch.ones(inner, device=device))
        self.norm = nn.RMSNorm(inner, eps=config.layernorm_epsilon, **kind)
        self.out_proj = submodules.out_proj(
            inner,
            d_model,
            config=config,
            init_method=config.output_layer_init_method,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=True,
            is_expert=False,
            tp_group=pg_collection.tp,
        )

    def forward(
        self,
        hidden_states: Tensor,
        inference_context: object | None = None,
        packed_seq_params: "PackedSeqParams | None" = None,
    ) -> tuple[Tensor, None]:
        """Mix ``hidden_states`` along the sequence.

        Args:
            hidden_states: [s, b, h]; packed, b is 1 and s is the tokens of all documents.
            inference_context: None; this version only trains.
            packed_seq_params: Where documents begin in a packed row; None if not packed.

        Returns:
            [s, b, h], and None for the bias that there is not.

        Raises:
            Unsupported: An inference context, or packed sequences without their boundaries.
            ValueError: Boundaries that do not describe the row.
        """
        if inference_context is not None:
            raise _unsupported("inference", "an inference context", "train or evaluate without it")
        cu_seqlens = None
        position = None
        if packed_seq_params is not None:
            cu_seqlens = _boundaries(packed_seq_params, hidden_states)
            spans = document_spans(cu_seqlens, hidden_states.shape[0])
            position = positions(spans).to(hidden_states.device)

        projected, _ = self.in_proj(hidden_states)
        qkv, f, g = torch.split(
            projected.transpose(0, 1),
            [sum(self.qkv_sizes), self.heads.f, self.heads.state * self.options.V],
            dim=-1,
        )
        qkv = functional.silu(causal_convolution(qkv, self.conv_weight, position))
        q, k, v = (
            torch.unflatten(x, -1, (heads, -1))
            for x, heads in zip(
                torch.split(qkv, self.qkv_sizes, dim=-1),
                (self.heads.q, self.heads.k, self.heads.v),
                strict=True,
            )
        )
        y = self._recur(q, k, v, forget_gate(f, self.A_log, self.dt_bias), cu_seqlens)
        y = y + self._skip(v)
        y = self.norm(y.flatten(-2) * functional.silu(g))
        out, _ = self.out_proj(y.transpose(0, 1).contiguous())
        return out, None

    def _recur(
        self, q: Tensor, k: Tensor, v: Tensor, f: Tensor, cu_seqlens: Tensor | None
    ) -> Tensor:
        """Run the operator in the layout that it wants, [B, S, ...] or packed [T, ...]."""
        if cu_seqlens is None:
            return m2rnn(q, k, v, self.W, f, clip=self.clip)[0]
        q, k, v, f = (x.squeeze(0) for x in (q, k, v, f))
        return m2rnn(q, k, v, self.W, f, cu_seqlens=cu_seqlens, clip=self.clip)[0].unsqueeze(0)

    def _skip(self, v: Tensor) -> Tensor:
        """Compute v · D for every head of the state, [B, S, N, V] in v's dtype."""
        D = self.D.to(v.dtype).view(self.heads.v, -1, self.options.V)
        return (v.unsqueeze(-2) * D).flatten(-3, -2)


def parallel_fault(pg_collection: "ProcessGroupCollection") -> Unsupported | None:
    """Say which of the model's process groups the mixer cannot be spread over.

    Args:
        pg_collection: The model's process groups.

    Returns:
        The fault; None where tensor and context parallel size are 1.
    """
    for group, capability in (("tp", "tensor-parallel"), ("cp", "context-parallel")):
        held = getattr(pg_collection, group, None)
        if held is not None and held.size() > 1:
            return _unsupported(capability, f"{capability} size {held.size()}", f"set {group} to 1")
    return None


def _unsupported(capability: str, found: str, then: str) -> Unsupported:
    return Unsupported(
        asked=f"{capability} with seam 'm2rnn', whose manifest does not say that it supports it",
        found=found,
        next=f"{then}, or ask @megatron-seams/recurrent for {capability}",
        subject="m2rnn",
    )


def _boundaries(packed: "PackedSeqParams", hidden_states: Tensor) -> Tensor:
    """Find where documents begin in a packed row, as Megatron's own mixer does.

    Padded boundaries win over real ones, since they say where the tokens lie. Tokens after the last
    boundary are padding: a document of their own.

    Returns:
        [documents + 1] int64 on the CPU: one wait for the accelerator in a layer and not two.
    """
    found = (
        packed.cu_seqlens_q if packed.cu_seqlens_q_padded is None else packed.cu_seqlens_q_padded
    )
    if found is None:
        raise _unsupported(
            "packed-sequences",
            "packed_seq_params without cu_seqlens_q",
            "pass the boundaries of the documents",
        )
    tokens, batch = hidden_states.shape[:2]
    if batch != 1:
        raise _unsupported(
            "packed-sequences", f"packed rows in a batch of {batch}", "pack into one row"
        )
    bounds: list[int] = found.tolist()
    return torch.tensor(bounds if bounds[-1] >= tokens else [*bounds, tokens])
