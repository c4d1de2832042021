"""The parameter-free core attention of the TE-free backend."""

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor, nn
from torch.nn import functional

from megatron_seams.runtime.collectives import contiguous_gradient
from megatron_seams.runtime.documents import document_starts, packed_cu_seqlens

if TYPE_CHECKING:
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.transformer_config import TransformerConfig

_CAUSAL = (AttnMaskType.causal, AttnMaskType.padding_causal)


class LocalCoreAttention(nn.Module):
    """Causal scaled dot-product attention by ``torch.nn.functional.scaled_dot_product_attention``.

    It goes where Transformer Engine's core attention goes, for plain attention and for MLA, whose
    keys and values have different widths. Packed sequences (``thd``) are kept apart by a
    block-diagonal mask of ``t x t``, which is meant for small ``t``.

    Args:
        config: The model's configuration.
        softmax_scale: The factor on the scores; one over the square root of the key width if None.
        pg_collection: The process groups; those of Megatron's ``parallel_state`` if None.

    Raises:
        ValueError: A kind of attention that it does not compute: a mask that is not causal, a
            window, a softmax other than the vanilla one, context parallelism.
    """

    def __init__(
        self,
        config: "TransformerConfig",
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        pg_collection: "ProcessGroupCollection | None" = None,
        **_: Any,
    ) -> None:
        super().__init__()
        refused = {
            f"attention of type {attention_type!r}": attention_type != "self",
            f"attention mask {attn_mask_type}": attn_mask_type not in _CAUSAL,
            "window_size": config.window_size is not None,
            f"softmax_type {config.softmax_type!r}": config.softmax_type != "vanilla",
            "context parallelism": config.context_parallel_size > 1,
        }
        found = [what for what, so in refused.items() if so]
        if found:
            message = f"{', '.join(found)}: the TE-free attention does not compute it"
            raise ValueError(message)
        # `apply_query_key_layer_scaling` is not read: upstream divides the scores by the layer's
        # number and multiplies them back in its softmax, for fp16's range; the result is the same.
        self.softmax_scale = softmax_scale
        dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.dropout = float(dropout)
        self.sequence_parallel = bool(config.sequence_parallel)
        self.layer_number = layer_number
        self.rotary = config.qk_pos_emb_head_dim if config.multi_latent_attention else 0
        self.tp_group = None if pg_collection is None else pg_collection.tp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: "PackedSeqParams | None" = None,
    ) -> Tensor:
        """Attend causally.

        Args:
            query: [s, b, n, k], or [t, n, k] packed.
            key: [s, b, g, k] with n a multiple of g, or [t, g, k].
            value: [s, b, g, v], or [t, g, v].
            attention_mask: Not read: the mask is causal.
            attn_mask_type: The layer's own if None. ``no_mask`` for a single query, the last token,
                which sees all keys: so upstream decodes.
            attention_bias: None.
            packed_seq_params: The documents' boundaries, for packed input.

        Returns:
            [s, b, n * v], or [t, n * v] packed.

        Raises:
            ValueError: Another mask, a bias, or packed input without boundaries.
        """
        del attention_mask
        last = attn_mask_type is AttnMaskType.no_mask and len(query) == 1
        if (not last and attn_mask_type not in (None, *_CAUSAL)) or attention_bias is not None:
            message = f"attention with mask {attn_mask_type} and bias: only causal, without bias"
            raise ValueError(message)
        if self.rotary:
            key = self._shared_rotary(key)
        packed = packed_seq_params is not None and query.dim() == 3
        if packed:
            query, key, value = (part.unsqueeze(1) for part in (query, key, value))
        # [s, b, n, d] -> [b, n, s, d]
        query, key, value = (part.permute(1, 2, 0, 3) for part in (query, key, value))
        if key.size(1) != query.size(1):
            repeats = query.size(1) // key.size(1)
            key, value = (part.repeat_interleave(repeats, dim=1) for part in (key, value))
        mask = None
        if packed_seq_params is not None and packed:
            mask = _same_document(packed_seq_params, query.size(2))
        with self._random_state():
            context = functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=mask is None and not last,
                scale=self.softmax_scale,
            )
        # [b, n, s, v] -> [s, b, n * v]
        context = context.permute(2, 0, 1, 3).flatten(2)
        return context.squeeze(1) if packed else context

    def _shared_rotary(self, key: Tensor) -> Tensor:
        """The key, whose rotary part gets the gradient of the heads of all tensor-parallel ranks.

        All heads of latent attention share that part. Each rank has some of the heads, and
        upstream's gather of a projection that is split over ranks, which is what it has without
        Transformer Engine, hands back a rank's own gradient alone.
        """
        widths = [key.size(-1) - self.rotary, self.rotary]
        plain, rotary = torch.split(key, widths, dim=-1)
        shared = copy_to_tensor_model_parallel_region(rotary, group=self.tp_group)
        return torch.cat([plain, contiguous_gradient(shared)], dim=-1)

    def _random_state(self) -> contextlib.AbstractContextManager[Any]:
        # The heads are split over tensor-parallel ranks: each rank drops its own, as upstream's
        # attention does. With sequence parallelism the stack's state is the rank's own already.
        if self.dropout == 0.0 or not self.training or self.sequence_parallel:
            return contextlib.nullcontext()
        state: contextlib.AbstractContextManager[Any] = get_cuda_rng_tracker().fork()
        return state


def _same_document(packed_seq_params: "PackedSeqParams", length: int) -> Tensor:
    """[t, t] bool: whether a query may see a key, at or before it in the same document."""
    boundaries = packed_cu_seqlens(packed_seq_params)
    if boundaries is None:
        message = "packed input without packed_seq_params.cu_seqlens_q"
        raise ValueError(message)
    starts = document_starts(boundaries, length)
    return (starts[:, None] == starts[None, :]).tril()
