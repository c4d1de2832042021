"""Engram as released: an independent numpy reference, and weights in the demonstration's layout."""

import hashlib
import json
import math
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from packaging.version import Version
from torch import Tensor

from megatron_seams.base.structure import structure
from megatron_seams.errors import FeatureInvalid
from megatron_seams.hookspecs import FeatureContext
from megatron_seams_ngram.engram.compression import KIND
from megatron_seams_ngram.engram.module import Engram
from megatron_seams_ngram.engram.options import Options
from megatron_seams_ngram.engram.plugin import engram_feature
from megatron_seams_ngram.engram.released import load_released
from megatron_seams_ngram.host.ahead import fetch_ahead

Array = NDArray[np.float64]

VOCABULARY, HIDDEN, PAD, SEED = 40, 6, 2, 3
LAYERS, LAYER_IDS = (4, 9), (1, 15)
ORDERS, SIZES, HEADS, WIDTH, KERNEL = (2, 3), (50, 70), 3, 4, 4
NORM_EPS, CONVOLUTION_EPS = 1.2e-7, 1e-5
#: Token id -> compressed id: every third token reads like the one before it.
IDS = [token - (token + 1) // 3 for token in range(VOCABULARY - 4)]


# --- the reference ------------------------------------------------------------------------------


def is_prime(n: int) -> bool:
    return n > 1 and all(n % divisor for divisor in range(2, int(n**0.5) + 1))


def reference_primes() -> dict[int, list[int]]:
    """Layer id -> the sizes of its tables: heads take the next prime that nobody has."""
    seen: set[int] = set()
    found: dict[int, list[int]] = {}
    for layer in LAYER_IDS:
        found[layer] = []
        for size in SIZES:
            candidate = size - 1
            for _ in range(HEADS):
                candidate += 1
                while candidate in seen or not is_prime(candidate):
                    candidate += 1
                seen.add(candidate)
                found[layer].append(candidate)
    return found


def reference_indices(layer: int, documents: list[list[int]]) -> list[list[int]]:
    """The row of each position in each table, in integers without bounds."""
    count, primes = max(IDS) + 1, reference_primes()[layer]
    generator = np.random.default_rng(SEED + 10007 * layer)
    drawn = generator.integers(0, max(1, (2**63 - 1) // count // 2), size=(max(ORDERS),))
    multipliers = [int(number) * 2 + 1 for number in drawn]
    rows = []
    for document in documents:
        compressed = [IDS[token] for token in document]
        for t in range(len(compressed)):
            window = [compressed[t - k] if t >= k else IDS[PAD] for k in range(max(ORDERS))]
            row = []
            for number, order in enumerate(ORDERS):
                mixed = 0
                for k in range(order):
                    mixed ^= window[k] * multipliers[k]
                row += [mixed % p for p in primes[number * HEADS : (number + 1) * HEADS]]
            rows.append(row)
    starts = np.cumsum([0, *primes[:-1]])
    return (np.array(rows) + starts).tolist()


def norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean() + eps) * weight


def reference_output(
    state: dict[str, Array], layer: int, documents: list[list[int]], hidden: Array, streams: int
) -> Array:
    """The addition to the hidden states [t, streams, h], one position and stream at a time."""
    rows = reference_indices(layer, documents)
    table = state["multi_head_embedding.embedding.weight"]
    value_of = np.zeros_like(hidden)
    for t, row in enumerate(rows):
        e = np.concatenate([table[i] for i in row])
        value = state["value_proj.weight"] @ e + state["value_proj.bias"]
        for i in range(streams):
            key = state[f"key_projs.{i}.weight"] @ e + state[f"key_projs.{i}.bias"]
            key = norm(key, state[f"norm1.{i}.weight"], NORM_EPS)
            query = norm(hidden[t, i], state[f"norm2.{i}.weight"], NORM_EPS)
            s = key @ query / HIDDEN**0.5
            s = np.sign(s) * max(abs(s), 1e-6) ** 0.5
            value_of[t, i] = value / (1 + np.exp(-s))
    out = value_of.copy()
    taps = state["short_conv.conv.weight"]
    starts = list(
        chain(*([at] * len(d) for at, d in zip(begins(documents), documents, strict=True)))
    )
    for t in range(len(rows)):
        for i in range(streams):
            mixed = np.zeros(HIDDEN)
            for back in range(KERNEL):
                at = t - back * max(ORDERS)
                if at >= starts[t]:
                    weight = state[f"short_conv.norms.{i}.weight"]
                    own = taps[i * HIDDEN : (i + 1) * HIDDEN, 0, KERNEL - 1 - back]
                    mixed += own * norm(value_of[at, i], weight, CONVOLUTION_EPS)
            out[t, i] += mixed / (1 + np.exp(-mixed))
    return out


def begins(documents: list[list[int]]) -> list[int]:
    return [0, *np.cumsum([len(it) for it in documents]).tolist()][:-1]


def released_state(layer: int, streams: int, *, bias: bool = True, seed: int = 0) -> dict[str, Any]:
    """Weights by the demonstration's names, of its shapes."""
    draw, columns = np.random.default_rng(seed), len(ORDERS) * HEADS * WIDTH
    rows = sum(reference_primes()[layer])
    state = {
        "multi_head_embedding.embedding.weight": draw.normal(size=(rows, WIDTH)),
        "value_proj.weight": draw.normal(size=(HIDDEN, columns)),
        "short_conv.conv.weight": draw.normal(size=(streams * HIDDEN, 1, KERNEL)),
    }
    if bias:
        state["value_proj.bias"] = draw.normal(size=HIDDEN)
    for i in range(streams):
        state[f"key_projs.{i}.weight"] = draw.normal(size=(HIDDEN, columns))
        if bias:
            state[f"key_projs.{i}.bias"] = draw.normal(size=HIDDEN)
        for name in ("norm1", "norm2", "short_conv.norms"):
            state[f"{name}.{i}.weight"] = draw.normal(size=HIDDEN)
    return state


def tensors(state: dict[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in state.items()}


# --- the module ---------------------------------------------------------------------------------


@pytest.fixture
def released(tmp_path: Path) -> dict[str, Any]:
    """The options of a released model."""
    file = tmp_path / "table.json"
    file.write_text(json.dumps({"kind": KIND, "schema": 1, "ids": IDS}))
    return {
        "orders": ORDERS,
        "table_rows": SIZES,
        "heads": HEADS,
        "width": WIDTH,
        "kernel": KERNEL,
        "seed": SEED,
        "hashing": "released",
        "gate": "signed-sqrt",
        "bias": True,
        "layer_ids": LAYER_IDS,
        "pad_id": PAD,
        "norm_eps": NORM_EPS,
        "convolution_eps": CONVOLUTION_EPS,
        "compression_file": str(file),
        "compression_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "backend": "torch",
    }


def build(options: dict[str, Any], *, layer: int = LAYERS[1], tp: Any = None) -> Engram:
    context = FeatureContext(
        config=SimpleNamespace(
            hidden_size=HIDDEN,
            embedding_init_method_std=0.02,
            init_method_std=0.02,
            layernorm_epsilon=1e-5,
            params_dtype=torch.float64,
            use_cpu_initialization=True,
            sequence_parallel=False,
        ),
        options=Options(**options),
        megatron_version=Version("0.19.2"),
        backend=SimpleNamespace(),
        pg_collection=SimpleNamespace(tp=tp),
        placement="residual",
        vocab_size=VOCABULARY,
        packed_sequences=False,
        layer_number=layer,
        layer_numbers=LAYERS,
    )
    return engram_feature(context)


def documents(*lengths: int) -> list[list[int]]:
    draw = np.random.default_rng(8)
    return [draw.integers(0, len(IDS), size=length).tolist() for length in lengths]


@pytest.mark.parametrize("layer", range(len(LAYERS)))
def test_hashes_sizes_and_multipliers_are_the_released_ones(
    layer: int, released: dict[str, Any]
) -> None:
    module = build(released, layer=LAYERS[layer])
    assert module.tables.primes.tolist() == reference_primes()[LAYER_IDS[layer]]
    texts = documents(11, 1, 17)
    lengths = torch.tensor([0, 11, 12, 29], dtype=torch.int32)
    found = module.indices(torch.tensor([list(chain(*texts))]), cu_seqlens=lengths)
    assert found[0].tolist() == reference_indices(LAYER_IDS[layer], texts)


@pytest.mark.parametrize("streams", [1, 3])
def test_it_computes_the_released_form_with_released_weights(
    streams: int, released: dict[str, Any]
) -> None:
    module = build({**released, "streams": streams})
    state = released_state(LAYER_IDS[1], streams)
    load_released(module, tensors(state))
    texts = documents(15, 13)
    hidden = np.random.default_rng(5).normal(size=(28, streams, HIDDEN))
    hidden[7] = 0  # a score of nothing: its gate is one half
    expected = reference_output(state, LAYER_IDS[1], texts, hidden, streams)
    found = module(
        torch.from_numpy(hidden).reshape(28, 1, streams * HIDDEN),
        torch.tensor([list(chain(*texts))]),
        cu_seqlens=torch.tensor([0, 15, 28], dtype=torch.int32),
    )
    np.testing.assert_allclose(
        found.detach().numpy().reshape(28, streams, HIDDEN), expected, rtol=1e-10, atol=1e-10
    )


def test_each_rank_loads_its_own_rows_of_the_tables(released: dict[str, Any]) -> None:
    state = tensors(released_state(LAYER_IDS[1], 1))
    table = state["multi_head_embedding.embedding.weight"]
    parts = []
    for rank in range(4):
        group = SimpleNamespace(rank=lambda rank=rank: rank, size=lambda: 4)
        module = build(released, tp=group)
        load_released(module, state)
        parts.append(module.tables.weight.detach())
        assert torch.equal(module.value, state["value_proj.weight"])
    assert torch.equal(torch.cat(parts)[: len(table)], table)


def test_tables_on_the_host_load_and_compute_as_resident_ones(released: dict[str, Any]) -> None:
    resident, host = build(released), build({**released, "tables": "host"})
    state = tensors(released_state(LAYER_IDS[1], 1))
    ids = torch.tensor([documents(20)[0]])
    fetch_ahead(host, ids)  # of the rows before, which are no guess any more
    for module in (resident, host):
        load_released(module, state)
    table = state["multi_head_embedding.embedding.weight"].float()
    assert torch.equal(host.tables.weight[: len(table)], table)
    assert torch.equal(resident.tables.weight[: len(table)].float(), table)
    # Rows on the host are in float32.
    resident.tables.weight.data.copy_(resident.tables.weight.data.float())
    hidden = torch.randn(20, 1, HIDDEN, dtype=torch.float64)
    expected = resident(hidden, ids)
    assert torch.equal(host(hidden, ids), expected)
    fetch_ahead(host, ids)
    assert torch.equal(host(hidden, ids), expected)
    assert not host.tables.host._guesses  # it was of the compressed ids, and was used


def test_every_weight_of_the_released_form_learns(released: dict[str, Any]) -> None:
    module = build({**released, "streams": 2})
    load_released(module, tensors(released_state(LAYER_IDS[1], 2)))
    hidden = torch.randn(20, 1, 2 * HIDDEN, dtype=torch.float64, requires_grad=True)
    module(hidden, torch.tensor([documents(20)[0]])).square().sum().backward()
    assert all(weight.grad.any() for weight in module.parameters())
    assert hidden.grad is not None


def test_the_gradient_of_the_signed_root_is_that_of_its_formula() -> None:
    from megatron_seams_ngram.engram.gate import gate_of

    scores = torch.tensor([-2.0, -1e-3, 1e-3, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: gate_of(s, "signed-sqrt"), scores)
    assert float(gate_of(torch.zeros(()), "signed-sqrt")) == 0.5
    assert torch.equal(gate_of(scores, "paper"), scores.sigmoid())


def test_at_step_0_the_released_form_adds_nothing(released: dict[str, Any]) -> None:
    module = build({**released, "streams": 2})
    assert not module(
        torch.randn(9, 1, 2 * HIDDEN, dtype=torch.float64), torch.tensor([documents(9)[0]])
    ).any()


def test_the_paper_s_form_has_the_parameters_that_it_had() -> None:
    paper = {"table_rows": 50, "heads": 2, "width": 4, "backend": "torch"}
    assert set(build(paper).state_dict()) == {
        *("key", "value", "taps"),
        *("hidden_norm.weight", "key_norm.weight", "value_norm.weight"),
        *(f"tables.{it}" for it in ("weight", "multipliers", "biases", "hash_of", "primes")),
        *("tables.offsets", "tables.pad_id"),
    }
    assert build(paper).gate == "paper"


# --- what does not fit --------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_refused_by_name_and_nothing_is_loaded(
    released: dict[str, Any],
) -> None:
    module = build(released)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    whole = tensors(released_state(LAYER_IDS[1], 1))
    for change, says in (
        ({"norm1.0.weight": None}, "norm1.0.weight missing"),
        ({"norm1.1.weight": torch.ones(HIDDEN)}, "no place for norm1.1.weight"),
        ({"value_proj.bias": torch.ones(3)}, r"value_proj.bias is \[3\] and not \[6\]"),
        ({"multi_head_embedding.offsets": module.tables.offsets + 1}, r"begin at rows \[1,"),
    ):
        state = {name: it for name, it in (whole | change).items() if it is not None}
        with pytest.raises(FeatureInvalid, match=says):
            load_released(module, state)
    # Of the layer before: other primes, and so another number of rows.
    with pytest.raises(FeatureInvalid, match=r"embedding\.weight is"):
        load_released(module, tensors(released_state(LAYER_IDS[0], 1)))
    with pytest.raises(FeatureInvalid, match=r"no place for key_projs.0.bias, value_proj.bias"):
        load_released(build({**released, "bias": False}), whole)
    # Of the same sizes, with multipliers of this project's own.
    hashed = build({**released, "hashing": "splitmix64", "layer_ids": None})
    rows = hashed.tables.weight.detach().clone()
    with pytest.raises(FeatureInvalid, match='hashes by "splitmix64"') as caught:
        load_released(hashed, whole)
    assert 'hashing = "released"' in caught.value.next
    assert torch.equal(hashed.tables.weight, rows)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    same = {"multi_head_embedding.offsets": module.tables.offsets}
    load_released(module, whole | same)


def test_hidden_states_of_another_number_of_streams_are_refused(released: dict[str, Any]) -> None:
    with pytest.raises(FeatureInvalid, match=r"seams\.engram\.streams"):
        build({**released, "streams": 2})(
            torch.zeros(4, 1, HIDDEN, dtype=torch.float64), torch.tensor([[1, 2, 3, 4]])
        )


@pytest.mark.parametrize("left_out", ["gate", "layer_ids", "pad_id", "compression_file"])
def test_what_a_checkpoint_decides_has_no_default(left_out: str, released: dict[str, Any]) -> None:
    del released[left_out]
    if left_out == "compression_file":
        del released["compression_sha256"]
    with pytest.raises(ValueError, match=left_out):
        Options(**released)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"table-rows": [100]}, "one for each of 2 orders"),
        ({"table-rows": [100, 1]}, "expected at least 2"),
        ({"table-rows": 2**48}, "below 281474976710656"),
        ({"norm-eps": math.inf}, "'norm_eps' must be < 1"),
        ({"layer-ids": [1, 1]}, "none twice"),
        ({"layer-ids": [1]}, "layer_ids: expected none with hashing = 'splitmix64'"),
        ({"gate": "sqrt"}, "expected one of 'paper', 'signed-sqrt'"),
        ({"streams": 0}, "must be >= 1"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], says: str) -> None:
    _, faults = structure(Options, options)
    assert any(says in fault.message for fault in faults), faults


def test_layer_ids_are_one_for_each_layer_and_the_pad_id_is_a_token(
    released: dict[str, Any],
) -> None:
    with pytest.raises(FeatureInvalid, match="one for each layer"):
        build({**released, "layer_ids": (1, 15, 20)})
    with pytest.raises(FeatureInvalid, match="the pad id 40"):
        build({**released, "pad_id": VOCABULARY})
