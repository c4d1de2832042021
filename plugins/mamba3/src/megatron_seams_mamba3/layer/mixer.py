"""The Mamba-3 mixer, as upstream's own ``MambaLayer`` calls it.

    in_proj → [z | x | B | C | dt | A | trap | angle]
    B, C    = RMSNorm over each group's state
    Δ, A Δ  = softplus(dt + dt_bias), -max(softplus(A), floor) Δ
    y       = recurrence(x, B, C, Δ, A Δ, trap, angle), gated by z
    out     = out_proj(y)

(arXiv:2603.15569.) There is no convolution, and no bias but those of B and C. Norm, residual and
dropout around it are ``MambaLayer``'s. Parameters have the names and, on one rank, the shapes of
the authors' module; :mod:`.published` takes its weights to any number of ranks.

Over tensor-parallel ranks every part of the input projection is split by itself, and everything up
to the output projection happens on the rank that has the heads; :mod:`.layout` says which.
"""

import functools
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_seams.runtime.collectives import gathered
from megatron_seams.runtime.decoding import check_context, no_dynamic_batching
from megatron_seams.runtime.documents import row_boundaries
from megatron_seams.runtime.mixers import (
    Projections,
    initial_dt_bias,
    parameter_device,
    split_parameter,
)
from megatron_seams.runtime.sharding import ShardedModule
from megatron_seams_mamba3.layer.cache import Kept, kept
from megatron_seams_mamba3.layer.norm import HeadNorm, StateNorm
from megatron_seams_mamba3.layer.refusal import REFUSALS
from megatron_seams_mamba3.layer.step import step_and_decay
from megatron_seams_mamba3.ops.contract import Mimo
from megatron_seams_mamba3.ops.operator import mamba3
from megatron_seams_mamba3.options import Options

if TYPE_CHECKING:
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.transformer_config import TransformerConfig
    from torch.distributed import ProcessGroup


class Mamba3Mixer(ShardedModule, MegatronModule):  # type: ignore[misc]  # Megatron ships no types
    """Mix along the sequence with a Mamba-3 state space model.

    Args:
        config: The model's configuration.
        submodules: The projections.
        options: The seam's options.
        d_model: The model's width.
        layer_number: The 1-based global number of the layer, under which inference keeps its state.
        pg_collection: The process groups; ``tp`` is read.
        pp_layer_offset: The number of layers on earlier pipeline stages; nothing depends on it.
        name: The module's place in the model; likewise.

    Raises:
        ValueError: Sizes that do not fit, or that do not divide over the ranks.
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
        self.layer_number, self.options = layer_number, options
        self.tp_group = pg_collection.tp
        layout = self.layout = options.layout(d_model, tp=self.tp_group.size())
        H, P, R, N = layout.heads, layout.P, layout.R, layout.N
        linear = {"width": d_model, "config": config, "tp_group": self.tp_group}
        self.in_proj = submodules.into(layout.channels, **linear)
        split = functools.partial(split_parameter, tp_group=self.tp_group)
        device = parameter_device(config)
        norm = {"tp_group": self.tp_group, "device": device, "dtype": config.params_dtype}
        dt_bias = initial_dt_bias(H, device, smallest=options.dt_min, largest=options.dt_max)
        self.dt_bias = split(dt_bias)
        self.B_bias = split(torch.ones(H, R, N, device=device))
        self.C_bias = split(torch.ones(H, R, N, device=device))
        self.B_norm, self.C_norm = StateNorm(N, **norm), StateNorm(N, **norm)
        if options.mimo_rank is not None:
            self.mimo_x = split(torch.full((H, R, P), 1 / R, device=device))
            self.mimo_z = split(torch.ones(H, R, P, device=device))
            self.mimo_o = split(torch.full((H, R, P), 1 / R, device=device))
        self.D = split(torch.ones(H, device=device))
        if options.out_norm:
            weight = split(torch.ones(H * P, device=device))
            self.norm = HeadNorm(weight, P, tp_group=self.tp_group)
        self.out_proj = submodules.out_of(H * P, **linear)

    def forward(
        self,
        hidden_states: Tensor,
        inference_context: Any = None,
        packed_seq_params: "PackedSeqParams | None" = None,
    ) -> tuple[Tensor, None]:
        """Mix ``hidden_states`` along the sequence.

        Args:
            hidden_states: [s, b, h]; packed, b is 1 and s is the tokens of all documents. With
                sequence parallelism, this rank's tokens.
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
            )
        projected, _ = self.in_proj(hidden_states)
        tokens, batch = projected.shape[:2]
        past = None
        if inference_context is not None:
            past = kept(
                inference_context, self.layer_number, self.layout, batch=batch, like=projected
            )
        cu_seqlens = row_boundaries(
            packed_seq_params, tokens=tokens, batch=batch, refusals=REFUSALS
        )
        y = self._recur(projected.transpose(0, 1), cu_seqlens, past)
        out, _ = self.out_proj(y.flatten(2).transpose(0, 1).contiguous())
        return out, None

    def _recur(self, projected: Tensor, cu_seqlens: Tensor | None, past: Kept | None) -> Tensor:
        """Run the recurrence with this rank's heads: [b, s, channels] to [b, s, H, P]."""
        options, layout = self.options, self.layout
        widths = layout.widths
        parts = dict(zip(widths, torch.split(projected, list(widths.values()), -1), strict=True))
        z, x = (torch.unflatten(parts[name], -1, (-1, layout.P)) for name in "zx")
        B, C, angle = self._read_by_several(parts)
        dt, log_decay = step_and_decay(
            parts["dt"],
            parts["A"],
            self.dt_bias,
            decay=options.decay,
            floor=options.decay_floor,
        )
        mimo = None
        if options.mimo_rank is not None:
            mimo = Mimo(x=self.mimo_x, z=self.mimo_z, o=self.mimo_o)
        y, last = mamba3(
            x,
            self.B_norm(B),
            self.C_norm(C),
            log_decay=log_decay,
            dt=dt,
            trap=parts["trap"],
            angle=angle,
            B_bias=self.B_bias,
            C_bias=self.C_bias,
            D=self.D,
            z=None if options.out_norm else z,
            mimo=mimo,
            state=None if past is None else past.state(),
            cu_seqlens=cu_seqlens,
            chunk=options.chunk_size,
            keep=past is not None,
            backend=options.backend,
        )
        if past is not None and last is not None:
            past.keep(last)
        return self._normalised(y, z) if options.out_norm else y

    def _read_by_several(self, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """B and C [b, s, R, G, N] of this rank's groups, and the angles [b, s, A], gathered."""
        layout = self.layout
        names = [name for name in parts if name[0] in "BC"]
        shared = [*(names if layout.shared else ()), "angle"]
        whole = gathered([parts[name] for name in shared], self.tp_group)
        parts = parts | dict(zip(shared, whole, strict=True))
        groups = [torch.unflatten(parts[name], -1, (-1, layout.N)) for name in names]
        if layout.shared:
            first = layout.first_group(self.tp_group.rank())
            groups = [group.narrow(-2, first, 1) for group in groups]
        B, C = (torch.stack(half, dim=2) for half in (groups[: layout.R], groups[layout.R :]))
        return B, C, parts["angle"]

    def _normalised(self, y: Tensor, z: Tensor) -> Tensor:
        """Normalise each head and gate it; with MIMO each rank's, which are then added."""
        if self.options.mimo_rank is None:
            return self.norm(y, z)  # type: ignore[no-any-return]
        ranks = self.norm(y, z.unsqueeze(2) * self.mimo_z.transpose(0, 1))
        added: Tensor = (ranks * self.mimo_o.transpose(0, 1)).sum(2).to(y.dtype)
        return added

    def mamba_state_shapes_per_request(self) -> None:
        """Refuse upstream's dynamic inference, which asks for the shapes of the states.

        Raises:
            Unsupported: Always.
        """
        raise no_dynamic_batching(REFUSALS)

    def divided(self) -> dict[str, int]:
        """All of the mixer's own parameters: each is one of heads."""
        return {name: 0 for name, _ in self.named_parameters(recurse=False)}

    def divided_parts(self) -> dict[str, dict[str, int]]:
        """The input projection's parts."""
        return {"in_proj.weight": self.layout.widths}
