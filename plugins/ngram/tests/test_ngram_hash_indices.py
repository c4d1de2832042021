"""The index rule in torch is the index rule in plain Python, at every boundary."""

import os
from itertools import accumulate, chain

import attrs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_seams_ngram.hash.module import HashedNgramEmbedding
from megatron_seams_ngram.hash.options import Options
from megatron_seams_ngram.ops.naive import reference_indices
from megatron_seams_ngram.tables.hash_tables import make_tables

#: Under Triton's interpreter the backend is that one (``test_ngram_triton.py`` runs it so).
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EXAMPLES = 5 if INTERPRETED else 60
VOCAB_SIZE = 131_072
EOD = 7

options = st.builds(
    Options,
    orders=st.sets(st.integers(2, 5), min_size=1).map(sorted).map(tuple),
    heads=st.integers(1, 3),
    table_rows=st.integers(2, 400),
    width=st.just(2),
    seed=st.integers(0, 2**63 - 1),
    pad_id=st.none() | st.integers(0, 2**40),
    backend=st.sampled_from(("triton",) if INTERPRETED else ("cpu", "torch")),
)
token = st.integers(0, VOCAB_SIZE - 1)
document = st.lists(token, min_size=1, max_size=12)


def build(chosen: Options) -> HashedNgramEmbedding:
    return HashedNgramEmbedding(
        chosen,
        hidden_size=3,
        vocab_size=VOCAB_SIZE,
        packed_sequences=False,
        init_std=0.02,
        dtype=torch.float32,
        use_cpu_initialization=True,
        tp_group=None,
        reduce_scatter_embeddings=False,
    )


def expected(chosen: Options, documents: list[list[int]]) -> list[list[int]]:
    tables = make_tables(
        orders=chosen.orders,
        heads=chosen.heads,
        table_rows=chosen.table_rows,
        seed=chosen.seed,
    )
    pad_id = VOCAB_SIZE if chosen.pad_id is None else chosen.pad_id
    return reference_indices(tables, documents, pad_id=pad_id)


@given(chosen=options, row=document)
@settings(max_examples=EXAMPLES, deadline=None)
def test_indices_of_one_document_equal_the_reference(chosen: Options, row: list[int]) -> None:
    (indices,) = build(chosen).indices(torch.tensor([row])).tolist()
    assert indices == expected(chosen, [row])


@given(
    chosen=options, rows=st.lists(st.lists(token, min_size=6, max_size=6), min_size=2, max_size=3)
)
@settings(max_examples=30, deadline=None)
def test_rows_of_a_batch_do_not_see_each_other(chosen: Options, rows: list[list[int]]) -> None:
    indices = build(chosen).indices(torch.tensor(rows)).tolist()
    assert indices == [expected(chosen, [row]) for row in rows]


@given(chosen=options, documents=st.lists(document, min_size=1, max_size=4))
@settings(max_examples=EXAMPLES, deadline=None)
def test_indices_of_packed_documents_equal_those_of_each_alone(
    chosen: Options, documents: list[list[int]]
) -> None:
    packed = torch.tensor([list(chain(*documents))])
    boundaries = torch.tensor([0, *accumulate(map(len, documents))], dtype=torch.int32)
    (indices,) = build(chosen).indices(packed, cu_seqlens=boundaries).tolist()
    assert indices == expected(chosen, documents)


@given(
    chosen=options,
    documents=st.lists(
        st.lists(token.filter(lambda t: t != EOD), max_size=8), min_size=1, max_size=5
    ),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_indices_stop_behind_the_end_of_document_token(
    chosen: Options, documents: list[list[int]]
) -> None:
    ended = [[*tokens, EOD] for tokens in documents]
    module = build(_with_eod(chosen))
    (indices,) = module.indices(torch.tensor([list(chain(*ended))])).tolist()
    assert indices == expected(chosen, ended)


def test_both_sources_of_boundaries_hold_at_once() -> None:
    chosen = Options(table_rows=50, width=2)
    documents = [[1, 2, EOD], [3, 4], [5, EOD], [6, 8]]  # the second ends without its token
    boundaries = torch.tensor([0, 5, 9], dtype=torch.int32)
    module = build(_with_eod(chosen))
    (indices,) = module.indices(
        torch.tensor([list(chain(*documents))]), cu_seqlens=boundaries
    ).tolist()
    assert indices == expected(chosen, documents)


def test_empty_documents_and_a_padded_tail_are_documents_of_their_own() -> None:
    chosen = Options(table_rows=50, width=2)
    boundaries = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    packed = torch.tensor([[1, 2, 3, 4, 5, 0, 0]])
    (indices,) = build(chosen).indices(packed, cu_seqlens=boundaries).tolist()
    assert indices == expected(chosen, [[1, 2], [3, 4, 5], [0, 0]])


def test_each_index_lies_in_its_own_table() -> None:
    module = build(Options(table_rows=20, width=2))
    generator = torch.Generator().manual_seed(0)
    indices = module.indices(torch.randint(VOCAB_SIZE, (4, 64), generator=generator))
    local = indices - module.tables.offsets
    assert bool(((local >= 0) & (local < module.tables.primes)).all())


def test_missing_history_is_no_token_by_default() -> None:
    module = build(Options(table_rows=500, width=2))
    assert module.tables.pad_id.tolist() == [VOCAB_SIZE]
    # With the pad id 0, a row that starts with token 0 would hash as one that starts before it.
    (first, second) = module.indices(torch.tensor([[0, 5], [5, 0]])).unbind()
    assert first[1].tolist() != second[0].tolist()


def _with_eod(chosen: Options) -> Options:
    return attrs.evolve(chosen, end_of_document_id=EOD)
