"""A row of the batch: one document, or several packed one after the other."""

from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from megatron_seams.runtime.documents import (
    Spans,
    document_positions,
    document_spans,
    packed_cu_seqlens,
)
from megatron_seams_m2rnn.layer.refusal import unsupported

if TYPE_CHECKING:
    from megatron.core.packed_seq_params import PackedSeqParams


@attrs.frozen(kw_only=True, eq=False)
class Row:
    """The documents of a row.

    Attributes:
        spans: The ``(start, stop)`` of each document, in tokens of the whole row.
        cu_seqlens: [documents + 1] int64 on the CPU; None where nothing is packed.
        position: [s] int64, the number of each token inside its document, on the device of the
            tokens; None where nothing is packed.
    """

    spans: Spans
    cu_seqlens: Tensor | None = None
    position: Tensor | None = None

    @classmethod
    def of(
        cls,
        packed: "PackedSeqParams | None",
        *,
        tokens: int,
        batch: int,
        device: torch.device,
    ) -> "Row":
        """Read Megatron's description of a packed row.

        Tokens after the last boundary are padding, and one document more.

        Args:
            packed: The description; None where nothing is packed.
            tokens: The length of the row, over all context-parallel ranks.
            batch: The number of rows.
            device: Where the tokens are.

        Raises:
            Unsupported: No boundaries, several packed rows, or boundaries of a context-parallel
                group of their own.
            ValueError: Boundaries that do not describe the row.
        """
        if packed is None:
            return cls(spans=((0, tokens),))
        found = packed_cu_seqlens(packed)
        if found is None:
            raise unsupported(
                "packed-sequences",
                "packed_seq_params without cu_seqlens_q",
                "pass the boundaries of the documents",
            )
        if batch != 1:
            raise unsupported(
                "packed-sequences", f"packed rows in a batch of {batch}", "pack into one row"
            )
        if packed.local_cp_size is not None:
            raise unsupported(
                "a context-parallel size for each batch",
                f"packed_seq_params with local_cp_size {packed.local_cp_size}",
                "turn hybrid context parallelism off",
            )
        # One copy to the host for the layer, rather than one for each reader.
        bounds: list[int] = found.tolist()
        cu_seqlens = torch.tensor(bounds if bounds[-1] >= tokens else [*bounds, tokens])
        spans = document_spans(cu_seqlens, tokens)
        position = document_positions(cu_seqlens, tokens).to(device)
        return cls(spans=spans, cu_seqlens=cu_seqlens, position=position)
