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

from typing import TYPE_CHECKING, Any

import attrs
import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from megatron_seams.runtime.collectives import gathered
from megatron_seams.runtime.sharding import Offsets, ShardedModule, own_rows, sharded_parts
from megatron_seams_mamba3.layer.cache import Kept, kept
from megatron_seams_mamba3.layer.norm import HeadNorm, StateNorm
from megatron_seams_mamba3.layer.refusal import unsupported
from megatron_seams_mamba3.layer.row import boundaries
from megatron_seams_mamba3.layer.step import initial_dt_bias, step_and_decay
from megatron_seams_mamba3.ops.contract import Mimo
from megatron_seams_mamba3.ops.operator import mamba3
from megatron_seams_mamba3.options import Options

if TYPE_CHECKING:
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.transformer_config import TransformerConfig
    from torch.distributed import ProcessGroup


@attrs.frozen(kw_only=True)
class Mamba3MixerSubmodules:
    """The mixer's projections, from the backend that builds the rest of the model.

    Attributes:
        in_proj: The column parallel linear.
        out_proj: The row parallel linear.
    """

    in_proj: type
    out_proj: type


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
        submodules: Mamba3MixerSubmodules,
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
        self.in_proj = submodules.in_proj(
            d_model,
            sum(layout.channels.values()),
            config=config,
            init_method=config.init_method,
            gather_output=False,
            bias=False,
            skip_bias_add=False,
            is_expert=False,
            tp_comm_buffer_name="fc1",
            tp_group=self.tp_group,
        )
        # Upstream's resharding of a running model reads the parts of a fused weight there.
        weight: Any = self.in_proj.weight
        weight.partition_sizes = list(layout.widths.values())

        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        norm = {"tp_group": self.tp_group, "device": device, "dtype": config.params_dtype}
        dt_bias = initial_dt_bias(H, device, smallest=options.dt_min, largest=options.dt_max)
        self.dt_bias = self._split(dt_bias)
        self.B_bias = self._split(torch.ones(H, R, N, device=device))
        self.C_bias = self._split(torch.ones(H, R, N, device=device))
        self.B_norm, self.C_norm = StateNorm(N, **norm), StateNorm(N, **norm)
        if options.mimo_rank is not None:
            self.mimo_x = self._split(torch.full((H, R, P), 1 / R, device=device))
            self.mimo_z = self._split(torch.ones(H, R, P, device=device))
            self.mimo_o = self._split(torch.full((H, R, P), 1 / R, device=device))
        self.D = self._split(torch.ones(H, device=device))
        if options.out_norm:
            weight = self._split(torch.ones(H * P, device=device))
            self.norm = HeadNorm(weight, P, tp_group=self.tp_group)
        self.out_proj = submodules.out_proj(
            H * P,
            d_model,
            config=config,
            init_method=config.output_layer_init_method,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=True,
            is_expert=False,
            tp_comm_buffer_name="fc2",
            tp_group=self.tp_group,
        )

    def _split(self, whole: Tensor) -> nn.Parameter:
        """Keep this rank's rows.

        Every rank draws the whole, from the random state that Megatron gives all ranks of a model
        alike, so that a seed means the same values at every tensor-parallel size.
        """
        parameter = nn.Parameter(own_rows(whole, [whole.shape[0]], self.tp_group).clone())
        set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0, stride=1)
        return parameter

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
            self._refuse_inference(inference_context, packed_seq_params)
        projected, _ = self.in_proj(hidden_states)
        tokens, batch = projected.shape[:2]
        past = None
        if inference_context is not None:
            past = kept(
                inference_context, self.layer_number, self.layout, batch=batch, like=projected
            )
        cu_seqlens = boundaries(packed_seq_params, tokens=tokens, batch=batch)
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

    def _refuse_inference(self, context: Any, packed: "PackedSeqParams | None") -> None:
        """Refuse what a kept state cannot be combined with."""
        refused = {
            "dynamic batching": not context.is_static_batching(),
            "packed sequences": packed is not None,
            "sequence parallelism": self.config.sequence_parallel and self.layout.tp > 1,
        }
        for what, so in refused.items():
            if so:
                raise unsupported(f"inference with {what}", what, "use a static context without it")

    def mamba_state_shapes_per_request(self) -> None:
        """Refuse upstream's dynamic inference, which asks for the shapes of the states.

        Raises:
            Unsupported: Always.
        """
        what = "dynamic batching"
        raise unsupported(f"inference with {what}", what, "use a static context")

    def divided(self) -> dict[str, int]:
        """All of the mixer's own parameters: each is one of heads."""
        return {name: 0 for name, _ in self.named_parameters(recurse=False)}

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: Offsets = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Describe the parameters to Megatron's checkpoints, to be read at any parallel size."""
        sharded = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        key = f"{prefix}in_proj.weight"
        sharded[key] = sharded_parts(
            sharded[key],
            self.layout.widths,
            tp_group=self.tp_group,
            sharded_offsets=sharded_offsets,
        )
        return sharded
