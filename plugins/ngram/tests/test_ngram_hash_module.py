"""The feature as a model sees it: built by the hook, trained, saved."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor

from megatron_seams.errors import FeatureInvalid
from megatron_seams.hookspecs import FeatureContext
from megatron_seams_ngram.hash.module import HashedNgramEmbedding
from megatron_seams_ngram.hash.options import Options
from megatron_seams_ngram.hash.plugin import ngram_feature, ngram_options

VOCAB_SIZE = 64
HIDDEN = 8
EOD = 1


def build(
    *, packed_sequences: bool = False, dtype: torch.dtype = torch.float32, **options: Any
) -> HashedNgramEmbedding:
    context = FeatureContext(
        config=SimpleNamespace(
            hidden_size=HIDDEN,
            embedding_init_method_std=0.02,
            params_dtype=dtype,
            use_cpu_initialization=True,
        ),
        options=Options(table_rows=100, width=4, heads=2, **options),
        megatron_version=Version("0.19.2"),
        backend=SimpleNamespace(),
        pg_collection=SimpleNamespace(tp=None),
        placement="embedding",
        vocab_size=VOCAB_SIZE,
        packed_sequences=packed_sequences,
    )
    return ngram_feature(context)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(2, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))


def train(module: HashedNgramEmbedding, input_ids: Tensor, **keywords: Tensor) -> None:
    """A few steps towards a random target, so that neither parameter is at its first value."""
    target = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(9))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        (module(input_ids, **keywords) - target).square().mean().backward()
        optimizer.step()


def test_the_options_hook_names_the_options() -> None:
    assert ngram_options() is Options


def test_the_output_is_zero_at_step_0_in_the_parameters_dtype() -> None:
    output = build(dtype=torch.bfloat16)(tokens(2, 5))
    assert output.shape == (2, 5, HIDDEN)
    assert output.dtype == torch.bfloat16
    assert not output.any()


def test_gradients_reach_the_projection_at_once_and_the_table_from_the_second_step() -> None:
    module = build()
    input_ids = tokens(2, 6)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module(input_ids).sum().backward()
    assert module.projection.grad is not None
    assert module.projection.grad.any()
    optimizer.step()
    optimizer.zero_grad()
    module(input_ids).sum().backward()
    assert module.tables.weight.grad is not None
    touched = module.tables.weight.grad.any(dim=1).nonzero().flatten()
    assert touched.tolist() == sorted(set(module.indices(input_ids).flatten().tolist()))


def test_a_packed_document_does_not_see_the_one_before_it_by_cu_seqlens() -> None:
    module = build(packed_sequences=True)
    boundaries = torch.tensor([0, 5, 12], dtype=torch.int32)
    second = tokens(1, 7, seed=3)
    one, other = (torch.cat([tokens(1, 5, seed=seed), second], dim=1) for seed in (1, 2))
    train(module, one, cu_seqlens=boundaries)
    outputs = [module(row, cu_seqlens=boundaries) for row in (one, other)]
    assert outputs[0][:, 5:].abs().min() > 0
    assert torch.equal(outputs[0][:, 5:], outputs[1][:, 5:])
    assert not torch.equal(outputs[0][:, :5], outputs[1][:, :5])


def test_a_packed_document_does_not_see_the_one_before_it_by_its_end_token() -> None:
    module = build(packed_sequences=True, end_of_document_id=EOD)
    second = torch.cat([torch.tensor([[EOD]]), tokens(1, 7, seed=3)], dim=1)
    one, other = (torch.cat([tokens(1, 4, seed=seed), second], dim=1) for seed in (1, 2))
    train(module, one)
    outputs = [module(row) for row in (one, other)]
    assert outputs[0][:, 5:].abs().min() > 0
    assert torch.equal(outputs[0][:, 5:], outputs[1][:, 5:])
    assert not torch.equal(outputs[0][:, :5], outputs[1][:, :5])


def test_without_boundaries_the_window_does_cross() -> None:
    # The two tests above would miss it if windows never read history at all.
    module = build()
    second = tokens(1, 7, seed=3)
    one, other = (torch.cat([tokens(1, 5, seed=seed), second], dim=1) for seed in (1, 2))
    train(module, one)
    differs = (module(one) != module(other)).any(dim=-1)
    assert differs[0, 5:].tolist() == [True, True, False, False, False, False, False]


def test_the_next_token_is_never_seen() -> None:
    module = build()
    one = tokens(1, 8)
    other = one.clone()
    other[0, 5] = (one[0, 5] + 1) % VOCAB_SIZE
    train(module, one)
    differs = (module(one) != module(other)).any(dim=-1)
    assert differs[0].tolist() == [False] * 5 + [True] * 3


def test_packing_without_any_source_of_boundaries_is_refused() -> None:
    module = build(packed_sequences=True)
    with pytest.raises(FeatureInvalid, match="end-of-document-id") as caught:
        module(tokens(1, 4))
    assert "cu_seqlens" in caught.value.found


def test_an_end_of_document_id_that_never_comes_is_refused_at_build() -> None:
    with pytest.raises(FeatureInvalid, match=f"token ids are below {VOCAB_SIZE}"):
        build(packed_sequences=True, end_of_document_id=VOCAB_SIZE)


@pytest.mark.parametrize(
    ("shape", "boundaries"), [((2, 4), [0, 4]), ((1, 4), [[0, 4]])], ids=["batch", "matrix"]
)
def test_cu_seqlens_that_do_not_fit_the_batch_are_refused(
    shape: tuple[int, int], boundaries: list[Any]
) -> None:
    module = build(packed_sequences=True)
    with pytest.raises(FeatureInvalid, match="one row"):
        module(tokens(*shape), cu_seqlens=torch.tensor(boundaries, dtype=torch.int32))


def test_a_checkpoint_keeps_hashing_as_it_was_trained() -> None:
    trained = build(seed=1)
    input_ids = tokens(2, 9)
    train(trained, input_ids)
    state = trained.state_dict()
    assert set(state) == {
        "projection",
        "tables.weight",
        "tables.multipliers",
        "tables.biases",
        "tables.hash_of",
        "tables.primes",
        "tables.offsets",
        "tables.pad_id",
    }
    loaded = build(seed=2)
    assert not torch.equal(loaded.indices(input_ids), trained.indices(input_ids))
    loaded.load_state_dict(state, strict=True)
    assert torch.equal(loaded(input_ids), trained(input_ids))


def test_casting_the_model_leaves_the_hash_constants_whole() -> None:
    module = build()
    before = module.indices(tokens(1, 9))
    module.to(torch.bfloat16)
    assert module.tables.weight.dtype == torch.bfloat16
    assert torch.equal(module.indices(tokens(1, 9)), before)


@pytest.mark.megatron
@pytest.mark.release
def test_the_sharded_checkpoint_of_a_megatron_parent_holds_everything(tmp_path: Any) -> None:
    from megatron.core.transformer.utils import sharded_state_dict_default

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        world = torch.distributed.group.WORLD
        module = build()
        sharded = sharded_state_dict_default(
            module,
            "embedding.ngram_hash.",
            metadata={"dp_cp_group": world},
            tp_group=world,
        )
    finally:
        torch.distributed.destroy_process_group()
    assert {key: tuple(tensor.global_shape) for key, tensor in sharded.items()} == {
        f"embedding.ngram_hash.{key}": tuple(value.shape)
        for key, value in module.state_dict().items()
    }
