"""Document boundaries: what each source says, and that all readers agree."""

from itertools import accumulate, chain, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_seams.errors import FeatureInvalid, Unsupported
from megatron_seams.runtime.documents import (
    DocumentBoundaries,
    document_positions,
    document_spans,
    document_starts,
    document_starts_by_token,
    packed_cu_seqlens,
    row_boundaries,
)
from megatron_seams.runtime.refusals import Refusals

EOD = 9
LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(sum)


@given(lengths=LENGTHS, padding=st.integers(0, 3))
def test_all_readers_agree_on_every_row(lengths: list[int], padding: int) -> None:
    ends = [0, *accumulate(lengths)]
    tokens = ends[-1] + padding
    cu_seqlens = torch.tensor(ends, dtype=torch.int32)
    expected = [start for start, stop in pairwise([*ends, tokens]) for _ in range(start, stop)]
    starts = document_starts(cu_seqlens, tokens)
    assert starts.dtype == torch.int64
    assert starts.tolist() == expected
    positions = document_positions(cu_seqlens, tokens)
    assert positions.tolist() == [at - start for at, start in enumerate(expected)]
    if not padding:
        assert document_spans(cu_seqlens, tokens) == tuple(pairwise(ends))


@given(st.lists(st.lists(st.integers(0, EOD - 1), max_size=4), min_size=1, max_size=4))
def test_a_token_that_ends_documents_says_what_their_lengths_say(
    documents: list[list[int]],
) -> None:
    ended = [[*document, EOD] for document in documents]
    row = torch.tensor([list(chain(*ended))])
    cu_seqlens = torch.tensor([0, *accumulate(map(len, ended))])
    (starts,) = document_starts_by_token(row, EOD)
    assert torch.equal(starts, document_starts(cu_seqlens, row.shape[1]))


@pytest.mark.parametrize(
    "cu_seqlens",
    [
        torch.tensor([0]),
        torch.tensor([[0, 4]]),
        torch.tensor([0.0, 4.0]),
        torch.tensor([1, 4]),
        torch.tensor([0, 3]),
        torch.tensor([0, 3, 2, 4]),
    ],
    ids=["one number", "a matrix", "floats", "no start", "no end", "falling"],
)
def test_lengths_that_do_not_describe_the_row_are_refused(cu_seqlens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected cu_seqlens (as|to rise)"):
        document_spans(cu_seqlens, 4)


def test_padded_boundaries_win_and_nothing_packed_has_none() -> None:
    real, padded = torch.tensor([0, 3]), torch.tensor([0, 4])
    packed = SimpleNamespace(cu_seqlens_q=real, cu_seqlens_q_padded=padded)
    assert packed_cu_seqlens(packed) is padded  # type: ignore[arg-type]
    packed.cu_seqlens_q_padded = None
    assert packed_cu_seqlens(packed) is real  # type: ignore[arg-type]
    assert packed_cu_seqlens(None) is None


def boundaries(eod: int | None, *, packed: bool = True) -> DocumentBoundaries:
    return DocumentBoundaries(seam="memory", end_of_document_id=eod, packed_sequences=packed)


def test_a_feature_stops_at_the_latest_boundary_of_either_source() -> None:
    row, cu_seqlens = torch.tensor([[1, EOD, 2, 3, 4]]), torch.tensor([0, 3, 5], dtype=torch.int32)
    starts = boundaries(EOD).starts(row, cu_seqlens)
    assert starts is not None
    assert starts.tolist() == [[0, 0, 2, 3, 3]]
    assert boundaries(None, packed=False).starts(row, None) is None


def test_a_feature_without_any_source_of_boundaries_is_refused_where_rows_are_packed() -> None:
    row = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(
        FeatureInvalid, match=r"SEAM-R11.*packed(?s:.*)end-of-document-id"
    ) as caught:
        boundaries(None).starts(row, None)
    assert caught.value.key == "seams.memory.end-of-document-id"
    assert caught.value.subject == "memory"


def test_a_token_that_never_comes_and_boundaries_of_another_shape_are_refused() -> None:
    with pytest.raises(FeatureInvalid, match="token ids are below 9"):
        boundaries(EOD).check(9)
    boundaries(EOD).check(10)
    with pytest.raises(FeatureInvalid, match="one row"):
        boundaries(EOD).starts(torch.zeros(2, 4, dtype=torch.int64), torch.tensor([0, 4]))


def test_a_layers_row_ends_with_its_padding() -> None:
    def bounds(batch: int = 1, **fields: Any) -> torch.Tensor | None:
        names = ("cu_seqlens_q", "cu_seqlens_q_padded", "local_cp_size")
        packed: Any = SimpleNamespace(**dict.fromkeys(names) | fields)
        refusals = Refusals(seam="decay", owner="@lab/recurrent")
        return row_boundaries(packed, tokens=6, batch=batch, refusals=refusals)

    lengths = torch.tensor([0, 2, 4])
    found = bounds(cu_seqlens_q=lengths)
    assert found is not None
    assert found.tolist() == [0, 2, 4, 6]
    with pytest.raises(
        Unsupported, match=r"packed-sequences with seam 'decay'[\s\S]*without cu_seq"
    ):
        bounds()
    with pytest.raises(Unsupported, match="packed rows in a batch of 2"):
        bounds(2, cu_seqlens_q=lengths)
    with pytest.raises(Unsupported, match="local_cp_size 2"):
        bounds(cu_seqlens_q=lengths, local_cp_size=2)
    none = row_boundaries(None, tokens=6, batch=2, refusals=Refusals(seam="decay", owner="@lab/x"))
    assert none is None
