"""The gated memory: its formula, its constants, its documents, and nothing at step 0."""

import json
from itertools import accumulate, chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from torch import Tensor

from megatron_seams.errors import FeatureInvalid
from megatron_seams.hookspecs import FeatureContext
from megatron_seams_ngram.engram.compression import write_table
from megatron_seams_ngram.engram.convolution import causal_convolution
from megatron_seams_ngram.engram.module import Engram
from megatron_seams_ngram.engram.options import Options
from megatron_seams_ngram.engram.plugin import engram_feature, engram_options
from megatron_seams_ngram.ops.naive import reference_indices
from megatron_seams_ngram.tables.hash_tables import make_layer_tables
from megatron_seams_ngram.tables.primes import is_prime

VOCABULARY, HIDDEN, EOD = 64, 8, 1
LAYERS = (2, 5, 9)


def build(
    *, layer: int = 5, layers: tuple[int, ...] = LAYERS, packed: bool = False, **options: Any
) -> Engram:
    context = FeatureContext(
        config=SimpleNamespace(
            hidden_size=HIDDEN,
            embedding_init_method_std=0.02,
            init_method_std=0.02,
            layernorm_epsilon=1e-5,
            params_dtype=torch.float32,
            use_cpu_initialization=True,
            sequence_parallel=False,
        ),
        options=Options(**{"table_rows": 100, "width": 4, "heads": 2, **options}),
        megatron_version=Version("0.19.2"),
        backend=SimpleNamespace(),
        pg_collection=SimpleNamespace(tp=None),
        placement="residual",
        vocab_size=VOCABULARY,
        packed_sequences=packed,
        layer_number=layer,
        layer_numbers=layers,
    )
    return engram_feature(context)


def filled(**asked: Any) -> Engram:
    """One in which nothing is zero."""
    module = build(**asked)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in (module.tables.weight, module.value, module.taps):
            weight.normal_(generator=generator)
    return module


def tokens(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()


def states(length: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(length, batch, HIDDEN, generator=torch.Generator().manual_seed(seed))


def boundaries(documents: list[list[int]]) -> Tensor:
    return torch.tensor([0, *accumulate(map(len, documents))], dtype=torch.int32)


def test_the_options_hook_names_the_options() -> None:
    assert engram_options() is Options


# --- constants and indices ----------------------------------------------------------------------


def test_no_two_tables_of_any_layer_share_a_prime() -> None:
    tables = [
        make_layer_tables(
            orders=(2, 3, 4), heads=4, table_rows=1000, seed=7, layer=layer, layers=LAYERS
        )
        for layer in LAYERS
    ]
    primes = [prime for one in tables for prime in one.primes]
    assert len(set(primes)) == len(primes) == 3 * 12
    assert all(is_prime(prime) and prime >= 1000 for prime in primes)


def test_multipliers_follow_from_seed_and_layer_and_are_one_set_for_all_orders() -> None:
    def made(seed: int, layer: int) -> Any:
        return make_layer_tables(
            orders=(2, 3), heads=2, table_rows=50, seed=seed, layer=layer, layers=LAYERS
        )

    one = made(7, 5)
    assert made(7, 5) == one
    assert one.multipliers[0] == one.multipliers[1][:2]
    assert one.hash_of == (0, 0, 1, 1)
    assert all(m % 2 for m in one.multipliers[1])
    others = [made(7, 2), made(8, 5)]
    assert all(set(other.multipliers[1]).isdisjoint(one.multipliers[1]) for other in others)


@given(
    orders=st.sets(st.integers(2, 5), min_size=1).map(sorted).map(tuple),
    heads=st.integers(1, 3),
    seed=st.integers(0, 2**63 - 1),
    layer=st.sampled_from(LAYERS),
    backend=st.sampled_from(["cpu", "torch"]),
    documents=st.lists(
        st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=4
    ),
)
@settings(max_examples=60, deadline=None)
def test_indices_equal_the_reference_for_every_order_head_and_boundary(
    orders: tuple[int, ...],
    heads: int,
    seed: int,
    layer: int,
    backend: str,
    documents: list[list[int]],
) -> None:
    module = build(layer=layer, orders=orders, heads=heads, seed=seed, backend=backend)
    tables = make_layer_tables(
        orders=orders, heads=heads, table_rows=100, seed=seed, layer=layer, layers=LAYERS
    )
    packed = torch.tensor([list(chain(*documents))])
    (indices,) = module.indices(packed, cu_seqlens=boundaries(documents)).tolist()
    assert indices == reference_indices(tables, documents, pad_id=VOCABULARY)


# --- what it computes ---------------------------------------------------------------------------


def test_it_computes_the_formula_one_position_at_a_time() -> None:
    documents = [tokens(7, seed=1), tokens(13, seed=2)]
    ids, hidden = torch.tensor([list(chain(*documents))]), states(20)
    module = filled()
    found = module(hidden, ids, cu_seqlens=boundaries(documents))

    def norm(x: Tensor) -> Tensor:
        return x / (x.square().mean() + 1e-5).sqrt()

    with torch.no_grad():
        rows = module.tables.weight[module.indices(ids, cu_seqlens=boundaries(documents))[0]]
        values = []
        for t in range(20):
            e = rows[t].flatten()
            gate = torch.sigmoid(norm(hidden[t, 0]) @ norm(module.key @ e) / HIDDEN**0.5)
            values.append(gate * (module.value @ e))
        for t in range(20):
            start = 0 if t < 7 else 7
            mixed = sum(
                module.taps[:, tap] * norm(values[t - 3 * tap])
                for tap in range(4)
                if t - 3 * tap >= start
            )
            expected = values[t] + torch.nn.functional.silu(torch.as_tensor(mixed))
            torch.testing.assert_close(found[t, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_convolution_is_torchs_own_where_a_row_is_one_document() -> None:
    x, weight = states(30, batch=2), torch.randn(HIDDEN, 4)
    padded = torch.nn.functional.pad(x.permute(1, 2, 0), (9, 0))
    expected = torch.nn.functional.conv1d(
        padded, weight.flip(1).unsqueeze(1), groups=HIDDEN, dilation=3
    )
    found = causal_convolution(x, weight, dilation=3, starts=None)
    torch.testing.assert_close(found, expected.permute(2, 0, 1))


def test_the_output_is_exactly_zero_at_step_0_and_only_what_starts_it_has_a_gradient() -> None:
    module, hidden = build(), states(6, batch=2).requires_grad_()
    out = module(hidden, torch.tensor([tokens(6), tokens(6, seed=1)]))
    assert out.shape == hidden.shape
    assert not out.any()
    (out * states(6, batch=2, seed=1)).sum().backward()
    moved = {name for name, weight in module.named_parameters() if weight.grad.any()}
    assert moved == {"value"}
    assert not hidden.grad.any()


def test_everything_learns_once_it_has_started() -> None:
    module, ids, hidden = build(), torch.tensor([tokens(30)]), states(30)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    target = states(30, seed=2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (hidden + module(hidden, ids) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert all(weight.grad.any() for weight in module.parameters())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("source", ["cu_seqlens", "end of document"])
@pytest.mark.parametrize("changed", ["the first document", "its hidden states"])
def test_a_packed_document_does_not_see_the_one_before_it(source: str, changed: str) -> None:
    first, second = [*tokens(5), EOD], tokens(14, seed=3)
    other = [*tokens(5, seed=4), EOD] if changed == "the first document" else first
    eod = EOD if source == "end of document" else None
    module = filled(packed=True, end_of_document_id=eod)
    outputs = []
    for document, seed in ((first, 0), (other, 0 if other is not first else 8)):
        hidden = states(20)
        hidden[:6] = states(6, seed=seed)
        given = boundaries([document, second]) if eod is None else None
        outputs.append(module(hidden, torch.tensor([[*document, *second]]), cu_seqlens=given))
    assert torch.equal(outputs[0][6:], outputs[1][6:])
    assert not torch.equal(outputs[0][:6], outputs[1][:6])
    assert outputs[0][6:].abs().min() > 0


def test_without_boundaries_windows_and_convolution_do_cross() -> None:
    module, hidden = filled(), states(20)
    second = tokens(14, seed=3)
    one, other = (torch.tensor([[*tokens(6, seed=seed), *second]]) for seed in (0, 4))
    differs = (module(hidden, one) != module(hidden, other)).any(dim=-1).flatten().tolist()
    # Two positions by the window of three tokens; nine taps' reach behind the last of those.
    assert differs[:8] == [True] * 8
    assert any(differs[8:17])
    assert not any(differs[17:])


def test_a_later_token_or_state_is_never_seen() -> None:
    module, hidden, ids = filled(), states(20), torch.tensor([tokens(20)])
    out = module(hidden, ids)
    hidden[11] += 1
    ids[0, 11] = (ids[0, 11] + 1) % VOCABULARY
    assert torch.equal(module(hidden, ids)[:11], out[:11])


def test_packing_without_any_source_of_boundaries_is_refused() -> None:
    with pytest.raises(FeatureInvalid, match=r"seams\.engram\.end-of-document-id"):
        build(packed=True)(states(4), torch.tensor([tokens(4)]))


def test_a_checkpoint_keeps_hashing_as_it_was_trained() -> None:
    trained, loaded = filled(seed=1), build(seed=2)
    loaded.load_state_dict(trained.state_dict(), strict=True)
    ids = torch.tensor([tokens(9)])
    assert torch.equal(loaded(states(9), ids), trained(states(9), ids))


# --- compression --------------------------------------------------------------------------------


def test_compressed_tokens_share_their_rows_and_boundaries_stay_those_of_the_tokens(
    tmp_path: Path,
) -> None:
    texts = [f"word{token // 2}" if token > 7 else None for token in range(60)]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    digest = write_table(tmp_path / "texts.json", tmp_path / "table.json")
    asked = {"compression_file": str(tmp_path / "table.json"), "compression_sha256": digest}
    module = build(end_of_document_id=8, **asked)
    one, other = torch.tensor([[10, 20, 30]]), torch.tensor([[11, 21, 31]])
    assert torch.equal(module.indices(one), module.indices(other))
    assert int(module.tables.pad_id) == 8 + 26 + 1  # behind the ids, and that of the filled rows
    # 8 ends a document and 9, which reads like it, does not.
    ended, not_ended = (module.indices(torch.tensor([[5, end, 30]]))[0, 2] for end in (8, 9))
    assert not torch.equal(ended, not_ended)
    loaded = build(end_of_document_id=8, **asked)
    loaded.load_state_dict(module.state_dict(), strict=True)


def test_a_compression_of_another_digest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(["a", "A"]))
    write_table(tmp_path / "texts.json", tmp_path / "table.json")
    with pytest.raises(FeatureInvalid, match="its SHA-256 is"):
        build(compression_file=str(tmp_path / "table.json"), compression_sha256="0" * 64)
