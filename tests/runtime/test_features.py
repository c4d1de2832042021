"""Features: a named child and hooks, beside native keys that stay as they are."""

import pytest
import torch

from megatron_seams.errors import FeatureInvalid

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("world")]


@pytest.fixture(scope="module")
def featured(plan_of):
    from megatron_seams.runtime.build import build_model

    torch.manual_seed(3)
    return build_model(plan_of("*-", seams=("bonus",), features=("ngram",)))


@pytest.fixture(scope="module")
def plain(plan_of):
    from megatron_seams.runtime.build import build_model

    torch.manual_seed(3)
    return build_model(plan_of("*-"))


def packed(boundaries, padded=None):
    from megatron.core.packed_seq_params import PackedSeqParams

    boundaries = torch.tensor(boundaries, dtype=torch.int32)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        cu_seqlens_q_padded=padded,
        cu_seqlens_kv_padded=padded,
        max_seqlen_q=8,
        max_seqlen_kv=8,
    )


def inputs(length=8):
    ids = torch.arange(length).unsqueeze(0)
    return {"input_ids": ids, "position_ids": ids, "attention_mask": None}


def test_native_keys_are_the_same_with_and_without_a_feature(featured, plain):
    added = set(featured.state_dict()) - set(plain.state_dict())
    assert added == {"embedding.bonus.table.weight"}
    assert set(plain.state_dict()) < set(featured.state_dict())
    sharded = set(featured.sharded_state_dict()) - set(plain.sharded_state_dict())
    assert sharded == added


def test_what_the_feature_gives_is_added_to_the_word_embedding(featured):
    embedding = featured.embedding
    given = inputs()
    out = embedding(input_ids=given["input_ids"], position_ids=given["position_ids"])
    words = torch.nn.functional.embedding(given["input_ids"], embedding.word_embeddings.weight)
    expected = words + embedding.bonus(given["input_ids"])
    assert torch.equal(out, expected.transpose(0, 1))
    featured(**given).sum().backward()
    assert embedding.bonus.table.weight.grad.abs().sum() > 0


def test_document_boundaries_reach_the_feature_in_their_own_forward_only(featured):
    seen = featured.embedding.bonus.seen
    seen.clear()
    featured(**inputs())
    featured(**inputs(), packed_seq_params=packed([0, 3, 8]))
    featured(**inputs())
    featured(**inputs(), packed_seq_params=packed([0, 2, 6], torch.tensor([0, 4, 8])))
    assert [None if part is None else part.tolist() for part in seen] == [
        None,
        [0, 3, 8],
        None,
        [0, 4, 8],
    ]


def test_boundaries_of_a_forward_that_failed_are_forgotten(featured):
    seen = featured.embedding.bonus.seen
    with pytest.raises(TypeError):
        featured(**inputs(), packed_seq_params=packed([0, 3, 8]), no_such_argument=1)
    seen.clear()
    embedding = featured.embedding
    embedding(input_ids=inputs()["input_ids"], position_ids=None)
    assert seen == [None]


def test_a_copied_embedding_calls_the_copied_feature():
    import copy

    from megatron_seams.runtime.features import EmbeddingFeature

    class Ones(torch.nn.Module):
        def forward(self, input_ids, cu_seqlens=None):
            assert cu_seqlens is None
            return torch.ones(*input_ids.shape, 4) * self.value

    embedding = torch.nn.Embedding(8, 4)
    embedding.feature = Ones()
    embedding.feature.value = 1
    embedding.register_forward_hook(EmbeddingFeature(feature=embedding.feature).add)
    other = copy.deepcopy(embedding)
    other.feature.value = 3
    ids = torch.tensor([[1, 2]])
    assert torch.allclose(other(ids) - embedding(ids), torch.full((1, 2, 4), 2.0))


def test_a_stage_without_an_embedding_has_no_feature(plan_of):
    from megatron_seams.runtime.build import build_model

    model = build_model(plan_of("*-", seams=("bonus",), features=("ngram",)), pre_process=False)
    assert not any("bonus" in key for key in model.state_dict())


def test_a_feature_is_refused_where_the_hook_cannot_serve_it(plan_of, plain):
    from megatron_seams.runtime.build import build_model
    from megatron_seams.runtime.features import attach_to_embedding

    feature = torch.nn.Identity()
    with pytest.raises(FeatureInvalid, match="already"):
        attach_to_embedding(plain, "word_embeddings", feature)
    with pytest.raises(FeatureInvalid, match="rolled"):
        attach_to_embedding(build_model(plan_of("*-/*")), "bonus", feature)
    plain.config.sequence_parallel = True
    try:
        with pytest.raises(FeatureInvalid, match="sequence-parallel"):
            attach_to_embedding(plain, "bonus", feature)
    finally:
        plain.config.sequence_parallel = False
