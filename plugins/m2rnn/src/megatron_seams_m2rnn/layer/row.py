"""A row of the batch: one document, or several packed one after the other."""

from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from megatron_seams.runtime.documents import document_positions, row_boundaries
from megatron_seams_m2rnn.layer.refusal import REFUSALS
from megatron_seams_m2rnn.ops.documents import Documents

if TYPE_CHECKING:
    from megatron.core.packed_seq_params import PackedSeqParams


@attrs.frozen(kw_only=True, eq=False)
class Row:
    """The documents of a row.

    Attributes:
        documents: The documents of the whole row; their lengths stay on the device that they came
            on, since to read them from an accelerator is to wait for it.
        position: [s] int64, the number of each token inside its document, on the device of the
            tokens; None where nothing is packed.
    """

    documents: Documents
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
            ValueError: Boundaries on the CPU that do not describe the row.
        """
        cumulative = row_boundaries(packed, tokens=tokens, batch=batch, refusals=REFUSALS)
        if cumulative is None:
            return cls(documents=Documents(steps=tokens))
        documents = Documents.packed(cumulative, tokens)
        position = document_positions(cumulative, tokens).to(device)
        return cls(documents=documents, position=position)
