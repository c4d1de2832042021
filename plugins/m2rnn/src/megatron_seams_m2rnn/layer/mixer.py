"""The M²RNN mixer, as upstream's own ``MambaLayer`` calls it.

    in_proj → [q k v | f | g]
    q, k, v = SiLU(causal depthwise convolution)
    f       = exp(-exp(A_log) · softplus(f + dt_bias))
    y       = recurrence(q, k, v, W, f) + v · D
    out     = out_proj(RMSNorm(y · SiLU(g)))

(arXiv:2603.14360.) There are no biases. Norm, residual and dropout around it are ``MambaLayer``'s.

Over tensor-parallel ranks every part of the input projection is split by itself, and everything up
to the output projection happens on the rank that has the channels; :mod:`.layout` says which. Two
things are exchanged between: the channels of heads that several ranks read, and the norm's sum.
"""

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn
from torch.nn import functional

from megatron_seams.runtime.collectives import gathered, replicated
from megatron_seams.runtime.decoding import check_context, no_dynamic_batching
from megatron_seams.runtime.mixers import (
    Projections,
    initial_dt_bias,
    parameter_device,
    split_parameter,
)
from megatron_seams.runtime.sharding import ShardedModule, own_rows
from megatron_seams_m2rnn.layer.cache import kept
from megatron_seams_m2rnn.layer.context_parallel import to_heads, to_tokens, token_order
from megatron_seams_m2rnn.layer.convolution import causal_convolution
from megatron_seams_m2rnn.layer.fusion import fused
from megatron_seams_m2rnn.layer.gate import forget_gate, initial_decay
from megatron_seams_m2rnn.layer.norm import SplitRMSNorm
from megatron_seams_m2rnn.layer.refusal import REFUSALS
from megatron_seams_m2rnn.layer.row import Row
from megatron_seams_m2rnn.ops.operator import m2rnn
from megatron_seams_m2rnn.options import Options

_forget_gate = fused(forget_gate)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch ships no types of it
def _recurrence(*tensors: Any, **settings: Any) -> tuple[Tensor, Tensor]:
    """Run the operator outside of what ``torch.compile`` traces.

    It can follow neither a launch of the kernels nor the objects that the inputs are checked in.
    """
    return m2rnn(*tensors, **settings)


@fused
def _convolved(x: Tensor, weight: Tensor, position: Tensor | None, before: Tensor | None) -> Tensor:
    """Convolve x, [b, s, channels], as :func:`causal_convolution`; and SiLU."""
    return functional.silu(causal_convolution(x, weight, position, before))


def skip(v: Tensor, D: Tensor) -> Tensor:
    """Compute v · D for every head of the state.

    Args:
        v: [b, s, Nv, V].
        D: [N · V].

    Returns:
        [b, s, N, V] in v's dtype.
    """
    weighed = v.unsqueeze(-2) * D.to(v.dtype).view(v.shape[-2], -1, v.shape[-1])
    return weighed.flatten(-3, -2)


@fused
def _skipped(y: Tensor, v: Tensor, D: Tensor) -> Tensor:
    """Compute y + v · D, [s, b, N · V], from y, [b, s, N, V], and v, [b, s, Nv, V]."""
    return (y + skip(v, D)).flatten(-2).transpose(0, 1).contiguous()


@fused
def _gated(y: Tensor, g: Tensor) -> Tensor:
    """Let through of y, [s, b, N · V], what SiLU of g does."""
    return y * functional.silu(g)


if TYPE_CHECKING:
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.transformer_config import TransformerConfig
    from torch.distributed import ProcessGroup


class M2RNNMixer(ShardedModule, MegatronModule):  # type: ignore[misc]  # Megatron ships no types
    """Mix along the sequence with a matrix-state recurrent network.

    Args:
        config: The model's configuration.
        submodules: The projections.
        options: The seam's options.
        d_model: The model's width.
        layer_number: The 1-based global number of the layer, under which inference keeps its state.
        pg_collection: The process groups; ``tp`` and ``cp`` are read.
        pp_layer_offset: The number of layers on earlier pipeline stages; nothing depends on it.
        name: The module's place in the model; likewise.

    Raises:
        ValueError: Head counts that do not fit, or that do not divide over the ranks.
    """

    config: "TransformerConfig"
    tp_group: "ProcessGroup"

    def __init__(
        self,
        config: "TransformerConfig",
        submodules: Projections,
        options: Options,
        d_model: int,
        layer_number: int,
        pg_collection: "ProcessGroupCollection",
        pp_layer_offset: int = 0,  # noqa: ARG002 - part of MambaLayer's call
        name: str | None = None,  # noqa: ARG002 - likewise
    ) -> None:
        super().__init__(config)
        self.layer_number = layer_number
        self.tp_group, self.cp_group = pg_collection.tp, pg_collection.cp
        self.options = options
        self.clip = None if math.isinf(options.state_gradient_clip) else options.state_gradient_clip
        tp = self.tp_group.size()
        self.layout = options.layout(d_model, tp=tp, cp=self.cp_group.size())
        heads, channels = self.layout.heads, self.layout.channels
        self.widths = {name: width // tp for name, width in channels.items()}
        linear = {"width": d_model, "config": config, "tp_group": self.tp_group}
        self.in_proj = submodules.into(channels, **linear)
        split = functools.partial(split_parameter, tp_group=self.tp_group)
        device = parameter_device(config)
        kind = {"device": device, "dtype": config.params_dtype}
        mixed = [channels[name] for name in "qkv"]
        # The default of nn.Conv1d: uniform within one over the square root of the taps.
        bound = options.conv_size**-0.5
        taps = torch.empty(sum(mixed), options.conv_size, **kind).uniform_(-bound, bound)
        self.conv_weight = split(taps, parts=mixed)
        self.A_log = split(initial_decay(heads.f, device))
        self.dt_bias = split(initial_dt_bias(heads.f, device))
        W = torch.eye(options.V, **kind).repeat(heads.W, 1, 1)
        # Where there are fewer matrices than ranks, every rank has all of them.
        self.W_is_split = heads.W % tp == 0
        self.W = split(W) if self.W_is_split else nn.Parameter(W)
        # One dimension, since Megatron decays the weights that have more, and D is not decayed.
        inner = channels["g"]
        self.D = split(torch.ones(inner, device=device))
        self.norm = SplitRMSNorm(
            inner, eps=config.layernorm_epsilon, tp_group=self.tp_group, **kind
        )
        self.out_proj = submodules.out_of(inner, **linear)

    def forward(
        self,
        hidden_states: Tensor,
        inference_context: Any = None,
        packed_seq_params: "PackedSeqParams | None" = None,
    ) -> tuple[Tensor, None]:
        """Mix ``hidden_states`` along the sequence.

        Args:
            hidden_states: [s, b, h]; packed, b is 1 and s is the tokens of all documents. With
                sequence or context parallelism, this rank's tokens.
            inference_context: Upstream's static context, to continue a sequence from what the layer
                keeps there; None to begin at the first token and keep nothing.
            packed_seq_params: Where documents begin in a packed row; None if not packed.

        Returns:
            [s, b, h], and None for the bias that there is not.

        Raises:
            Unsupported: Packed sequences without their boundaries, or an inference context together
                with what it cannot be combined with.
            ValueError: Boundaries that do not describe the row, or a context that continues what
                the layer has not seen.
        """
        if inference_context is not None:
            check_context(
                inference_context,
                packed_seq_params,
                refusals=REFUSALS,
                sequence_parallel=self.config.sequence_parallel and self.layout.tp > 1,
                context_parallel=self.layout.cp > 1,
            )
        projected, _ = self.in_proj(hidden_states)
        g_width = self.widths["g"]
        qkvf, g = torch.split(projected, [projected.shape[-1] - g_width, g_width], dim=-1)
        row = Row.of(
            packed_seq_params,
            tokens=projected.shape[0] * self.layout.cp,
            batch=projected.shape[1],
            device=projected.device,
        )
        if self.layout.cp == 1:
            y = self._recur(qkvf, row, inference_context)
        else:
            order = token_order(row.documents.spans, self.layout.cp).to(projected.device)
            parts = torch.split(qkvf, [self.widths[name] for name in "qkvf"], dim=-1)
            y = self._recur(to_heads(list(parts), order, self.cp_group), row, None)
            y = to_tokens(y, order, self.cp_group)
        out, _ = self.out_proj(self.norm(_gated(y, g, training=self.training)))
        return out, None

    def _recur(self, qkvf: Tensor, row: Row, context: Any) -> Tensor:
        """Convolve and run the recurrence over whole documents, with this rank's heads.

        Args:
            qkvf: [s, b, channels of q, k, v and f on this rank].
            row: Its documents.
            context: The inference context, or None.

        Returns:
            [s, b, N · V] on this rank.
        """
        f_width = self.layout.local.f
        widths = [qkvf.shape[-1] - f_width, f_width]
        qkv, f = torch.split(qkvf.transpose(0, 1), widths, dim=-1)
        past = None
        if context is not None:
            past = kept(context, self.layer_number, self.layout, qkv, self.options.conv_size)
        weight = self._mine(self.conv_weight, *(self.widths[name] for name in "qkv"))
        before = None if past is None else past.tokens
        mixed = _convolved(qkv, weight, row.position, before, training=self.training)
        q, k, v = self._heads(mixed)
        f = _forget_gate(
            f, self._mine(self.A_log), self._mine(self.dt_bias), training=self.training
        )
        W = self._transitions()
        recur = functools.partial(_recurrence, clip=self.clip, backend=self.options.backend)
        if row.documents.cumulative is None:
            h0 = None if past is None else past.state
            y, last = recur(q, k, v, W, f, h0)
            if past is not None:
                past.keep(qkv, last)
        else:
            q_, k_, v_, f_ = (x.squeeze(0) for x in (q, k, v, f))
            y = recur(q_, k_, v_, W, f_, cu_seqlens=row.documents.cumulative)[0].unsqueeze(0)
        return _skipped(y, v, self._mine(self.D), training=self.training)

    def _mine(self, parameter: Tensor, *widths: int) -> Tensor:
        """Take what this context-parallel rank uses of a tensor-parallel rank's parameter."""
        return own_rows(parameter, widths or (parameter.shape[0],), self.cp_group)

    def _heads(self, mixed: Tensor) -> list[Tensor]:
        """Cut [b, s, channels] into q, k and v, [b, s, heads, dim] with the heads of this rank."""
        layout = self.layout
        widths = [self.widths[name] // layout.cp for name in "qkv"]
        parts = dict(zip("qkv", torch.split(mixed, widths, dim=-1), strict=True))
        shared = [name for name in parts if layout.shared(name)]
        whole = gathered([parts[name] for name in shared], self.cp_group)
        parts |= zip(shared, gathered(whole, self.tp_group), strict=True)
        heads = {}
        for name, part in parts.items():
            dim = layout.V if name == "v" else layout.K
            heads[name] = torch.unflatten(part, -1, (-1, dim))
            if name in shared:
                first = layout.first(name, self.tp_group.rank(), self.cp_group.rank())
                heads[name] = heads[name].narrow(-2, first, 1)
        return list(heads.values())

    def _transitions(self) -> Tensor:
        """Take the transition matrices of this rank's heads."""
        tp_rank, cp_rank = self.tp_group.rank(), self.cp_group.rank()
        first = self.layout.first("W", tp_rank, cp_rank)
        if self.W_is_split:
            first -= self.layout.first("W", tp_rank, 0)
            return self.W.narrow(0, first, self.layout.local.W)
        return replicated(self.W, self.tp_group).narrow(0, first, self.layout.local.W)

    def mamba_state_shapes_per_request(self) -> None:
        """Refuse upstream's dynamic inference, which asks for the shapes of the states.

        Raises:
            Unsupported: Always.
        """
        raise no_dynamic_batching(REFUSALS)

    def divided(self) -> dict[str, int]:
        """All parameters, but for transition matrices that are fewer than the ranks."""
        own = (name for name, _ in self.named_parameters(recurse=False))
        return {name: 0 for name in own if name != "W" or self.W_is_split}

    def divided_parts(self) -> dict[str, dict[str, int]]:
        """The parts of the input projection, and those of it that are convolved."""
        mixed = {name: self.widths[name] for name in "qkv"}
        return {"in_proj.weight": self.widths, "conv_weight": mixed}
