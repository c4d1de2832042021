"""Where a seam's windows stop: from whatever of the two sources of boundaries there is."""

import attrs
import torch
from torch import Tensor

from megatron_seams.errors import FeatureInvalid
from megatron_seams_ngram.documents import starts_from_cu_seqlens, starts_from_end_of_document


@attrs.frozen(kw_only=True)
class Boundaries:
    """What is known of document boundaries before any batch comes.

    Attributes:
        seam: The seam's name, for messages.
        end_of_document_id: The token that ends a document, or None.
        packed_sequences: Whether rows hold several documents, so that every batch needs a source.
    """

    seam: str
    end_of_document_id: int | None
    packed_sequences: bool

    def check(self, vocab_size: int) -> None:
        """Refuse an end-of-document id that no token can have: its boundaries would never come.

        Args:
            vocab_size: Token ids are below it.

        Raises:
            FeatureInvalid: The id is not.
        """
        eod = self.end_of_document_id
        if eod is not None and eod >= vocab_size:
            raise FeatureInvalid(
                asked=f"n-gram windows that stop behind token {eod}",
                found=f"token ids are below {vocab_size}, so that token never comes",
                next="set end-of-document-id to the tokenizer's id, or leave it out",
                subject=self.seam,
                key=self._key,
            )

    def starts(self, input_ids: Tensor, cu_seqlens: Tensor | None) -> Tensor | None:
        """Find where each token's document begins: the latest boundary of either source.

        Args:
            input_ids: [b, s] int64; [1, T] with ``cu_seqlens``.
            cu_seqlens: [documents + 1] int32, the boundaries of packed documents, or None.

        Returns:
            [b, s] or [1, s] int64; None where every row of the batch is one document.

        Raises:
            FeatureInvalid: Sequences are packed and nothing says where documents end, or
                ``cu_seqlens`` does not fit ``input_ids``.
        """
        eod = self.end_of_document_id
        if self.packed_sequences and cu_seqlens is None and eod is None:
            raise FeatureInvalid(
                asked="n-grams of packed sequences that stop at document boundaries",
                found="neither cu_seqlens came with the batch nor is there an end-of-document id",
                next="pass packed_seq_params to the model, or set end-of-document-id in the recipe",
                subject=self.seam,
                key=self._key,
            )
        starts = None
        if cu_seqlens is not None:
            self._check_fits(cu_seqlens, input_ids)
            starts = starts_from_cu_seqlens(cu_seqlens, input_ids.shape[1]).unsqueeze(0)
        if eod is not None:
            ended = starts_from_end_of_document(input_ids, eod)
            starts = ended if starts is None else torch.maximum(starts, ended)
        return starts

    @property
    def _key(self) -> str:
        return f"seams.{self.seam}.end-of-document-id"

    def _check_fits(self, cu_seqlens: Tensor, input_ids: Tensor) -> None:
        """Hold shapes against each other; values stay on the device: to read them is to wait."""
        if input_ids.shape[0] != 1 or cu_seqlens.dim() != 1:
            raise FeatureInvalid(
                asked="input_ids [1, T] with cu_seqlens [documents + 1]",
                found=f"input_ids {list(input_ids.shape)}, cu_seqlens {list(cu_seqlens.shape)}",
                next="pack the micro-batch into one row, as Megatron's thd format does",
                subject=self.seam,
            )
