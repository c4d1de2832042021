"""Document boundaries of packed rows, for seams that must not look across them.

Megatron packs several documents into one row of T tokens (its ``thd`` format, batch 1) and passes
their cumulative lengths ``cu_seqlens``: 0, then the end of each document. A row without them may
still hold several documents, each ended by a token of its own.

A layer reads the boundaries with :func:`row_boundaries`. One that loops over documents on the host
uses :func:`document_spans`. Code that selects tokens on the device uses :func:`document_starts`,
which does not wait for the device. :class:`DocumentBoundaries` is for features, which may have
either source, both, or none.

Importing this module imports torch and not Megatron.
"""

import itertools
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from megatron_seams.errors import FeatureInvalid
from megatron_seams.runtime.refusals import Refusals

if TYPE_CHECKING:
    from megatron.core.packed_seq_params import PackedSeqParams

#: The ``(start, stop)`` of each document of a row, in tokens, one after the other.
Spans = tuple[tuple[int, int], ...]


def packed_cu_seqlens(packed: "PackedSeqParams | None") -> Tensor | None:
    """Read where documents lie in a row from Megatron's description of it.

    Padded boundaries win over real ones: they say where the tokens are.

    Args:
        packed: The description; None where nothing is packed.

    Returns:
        [documents + 1] int32; None where nothing is packed, or the description has no boundaries.
    """
    if packed is None:
        return None
    padded: Tensor | None = packed.cu_seqlens_q_padded
    unpadded: Tensor | None = packed.cu_seqlens_q
    return unpadded if padded is None else padded


def row_boundaries(
    packed: "PackedSeqParams | None", *, tokens: int, batch: int, refusals: Refusals
) -> Tensor | None:
    """Read where the documents of a layer's input lie, all of its tokens accounted for.

    Args:
        packed: Megatron's description of a packed row; None where nothing is packed.
        tokens: The length of the row, over all context-parallel ranks.
        batch: The number of rows.
        refusals: The seam's.

    Returns:
        [documents + 2] cumulative lengths: tokens after the last boundary are padding, and one
        document more, perhaps empty. None where nothing is packed.

    Raises:
        Unsupported: No boundaries, several packed rows, or boundaries of a context-parallel group
            of their own.
    """
    if packed is None:
        return None
    found = packed_cu_seqlens(packed)
    if found is None:
        raise refusals.unsupported(
            "packed-sequences",
            found="packed_seq_params without cu_seqlens_q",
            then="pass the boundaries of the documents",
        )
    if batch != 1:
        raise refusals.unsupported(
            "packed-sequences",
            found=f"packed rows in a batch of {batch}",
            then="pack into one row",
        )
    if packed.local_cp_size is not None:
        raise refusals.unsupported(
            "a context-parallel size for each batch",
            found=f"packed_seq_params with local_cp_size {packed.local_cp_size}",
            then="turn hybrid context parallelism off",
        )
    return torch.cat([found, found.new_full((1,), tokens)])


def document_spans(cu_seqlens: Tensor, tokens: int) -> Spans:
    """Read cumulative lengths on the host.

    Args:
        cu_seqlens: [documents + 1] integers. On an accelerator they are copied to the host, which
            waits for them. A document may be empty.
        tokens: T, the length of the row.

    Returns:
        The ``(start, stop)`` of each document.

    Raises:
        ValueError: ``cu_seqlens`` is not one dimension of integers that starts at 0, never falls
            and ends at T.
    """
    if cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point() or cu_seqlens.numel() < 2:
        message = (
            "expected cu_seqlens as one dimension of at least two integers, found "
            f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
        )
        raise ValueError(message)
    bounds: list[int] = cu_seqlens.tolist()
    spans = tuple(itertools.pairwise(bounds))
    if bounds[0] != 0 or bounds[-1] != tokens or any(stop < start for start, stop in spans):
        message = (
            f"expected cu_seqlens to rise from 0 to the {tokens} tokens of the packed row, found "
            f"{bounds[:4]} … {bounds[-2:]}"
        )
        raise ValueError(message)
    return spans


def document_starts(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Find the first position of each token's document from cumulative lengths.

    Empty documents are skipped. Tokens after the last boundary are padding, and one document more.

    Args:
        cu_seqlens: [documents + 1] int32 or int64, ascending from 0. The values are not checked:
            they stay on their device, since to read them is to wait for it.
        tokens: T, the length of the row.

    Returns:
        [T] int64, on the device of ``cu_seqlens``.
    """
    boundaries = cu_seqlens.to(torch.int64)
    positions = torch.arange(tokens, device=cu_seqlens.device)
    document = torch.searchsorted(boundaries, positions, right=True) - 1
    return boundaries[document]


def document_positions(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Count the tokens of each document from 0; arguments and result as :func:`document_starts`."""
    positions = torch.arange(tokens, device=cu_seqlens.device)
    return positions - document_starts(cu_seqlens, tokens)


def document_starts_by_token(input_ids: Tensor, end_of_document_id: int) -> Tensor:
    """Find the first position of each token's document from the token that ends a document.

    That token belongs to the document that it ends.

    Args:
        input_ids: [b, s] int64.
        end_of_document_id: The id of the token.

    Returns:
        [b, s] int64, on the device of ``input_ids``.
    """
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    begins_next = torch.where(input_ids == end_of_document_id, positions + 1, 0)
    latest = begins_next.cummax(dim=1).values
    return torch.cat([torch.zeros_like(latest[:, :1]), latest[:, :-1]], dim=1)


@attrs.frozen(kw_only=True)
class DocumentBoundaries:
    """Where a feature learns of document boundaries, known before any batch comes.

    Attributes:
        seam: The seam's name, for messages. The recipe names the token in its ``[seams.NAME]``, as
            ``end-of-document-id``.
        end_of_document_id: The token that ends a document, or None.
        packed_sequences: Whether rows hold several documents, so that every batch needs a source.
    """

    seam: str
    end_of_document_id: int | None
    packed_sequences: bool

    def check(self, vocab_size: int) -> None:
        """Refuse an end-of-document id that no token has: its boundaries would never come.

        Args:
            vocab_size: Token ids are below it.

        Raises:
            FeatureInvalid: The id is not below ``vocab_size``.
        """
        ending = self.end_of_document_id
        if ending is not None and ending >= vocab_size:
            raise FeatureInvalid(
                asked=f"document boundaries behind token {ending}",
                found=f"token ids are below {vocab_size}, so that token never comes",
                next="set end-of-document-id to the tokenizer's id, or leave it out",
                subject=self.seam,
                key=self._key,
            )

    def starts(self, input_ids: Tensor, cu_seqlens: Tensor | None) -> Tensor | None:
        """Find the first position of each token's document: the latest boundary of either source.

        Args:
            input_ids: [b, s] int64; [1, T] with ``cu_seqlens``.
            cu_seqlens: [documents + 1] int32, as the feature is called with it.

        Returns:
            [b, s] or [1, T] int64; None where every row of the batch is one document.

        Raises:
            FeatureInvalid: Sequences are packed and nothing says where documents end, or
                ``cu_seqlens`` does not fit ``input_ids``.
        """
        ending = self.end_of_document_id
        if self.packed_sequences and cu_seqlens is None and ending is None:
            raise FeatureInvalid(
                asked="the document boundaries of packed sequences",
                found="neither cu_seqlens came with the batch nor is there an end-of-document id",
                next="pass packed_seq_params to the model, or set end-of-document-id in the recipe",
                subject=self.seam,
                key=self._key,
            )
        starts = None
        if cu_seqlens is not None:
            self._check_fits(cu_seqlens, input_ids)
            starts = document_starts(cu_seqlens, input_ids.shape[1]).unsqueeze(0)
        if ending is not None:
            by_token = document_starts_by_token(input_ids, ending)
            starts = by_token if starts is None else torch.maximum(starts, by_token)
        return starts

    @property
    def _key(self) -> str:
        return f"seams.{self.seam}.end-of-document-id"

    def _check_fits(self, cu_seqlens: Tensor, input_ids: Tensor) -> None:
        """Compare shapes alone, since reading values would wait for the device."""
        if input_ids.shape[0] != 1 or cu_seqlens.dim() != 1:
            raise FeatureInvalid(
                asked="input_ids [1, T] with cu_seqlens [documents + 1]",
                found=f"input_ids {list(input_ids.shape)}, cu_seqlens {list(cu_seqlens.shape)}",
                next="pack the micro-batch into one row, as Megatron's thd format does",
                subject=self.seam,
            )
