"""Features: a named child and hooks, beside native keys that stay as they are."""

import pytest
import torch

from megatron_seams.errors import FeatureInvalid
from megatron_seams.recipes.recipe import FeatureEntry

pytestmark = [pytest.mark.megatron, pytest.mark.release, pytest.mark.usefixtures("world")]


@pytest.fixture(scope="module")
def featured(plan_of):
    from megatron_seams.runtime.model.build import build_model

    torch.manual_seed(3)
    return build_model(plan_of("*-", seams=("bonus",), features=("ngram",)))


@pytest.fixture(scope="module")
def plain(plan_of):
    from megatron_seams.runtime.model.build import build_model

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

    from megatron_seams.runtime.model.batch import Batch
    from megatron_seams.runtime.model.features import EmbeddingFeature

    class Ones(torch.nn.Module):
        def forward(self, input_ids, cu_seqlens=None):
            assert cu_seqlens is None
            return torch.ones(*input_ids.shape, 4) * self.value

    embedding = torch.nn.Embedding(8, 4)
    embedding.feature = Ones()
    embedding.feature.value = 1
    batch = Batch(features=("feature",))
    attached = EmbeddingFeature(name="feature", feature=embedding.feature, batch=batch)
    embedding.register_forward_hook(attached.add)
    other = copy.deepcopy(embedding)
    other.feature.value = 3
    ids = torch.tensor([[1, 2]])
    assert torch.allclose(other(ids) - embedding(ids), torch.full((1, 2, 4), 2.0))


def test_a_stage_without_an_embedding_has_no_feature(plan_of):
    from megatron_seams.runtime.model.build import build_model

    model = build_model(plan_of("*-", seams=("bonus",), features=("ngram",)), pre_process=False)
    assert not any("bonus" in key for key in model.state_dict())


def test_a_feature_at_the_embedding_is_refused_where_the_hook_cannot_serve_it(plan_of, plain):
    from megatron_seams.runtime.model.batch import Batch
    from megatron_seams.runtime.model.build import build_model
    from megatron_seams.runtime.model.features import attach_to_embedding

    feature, batch = torch.nn.Identity(), Batch(features=("bonus",))
    with pytest.raises(FeatureInvalid, match="already"):
        attach_to_embedding(plain, "word_embeddings", feature, batch)
    first = build_model(plan_of("*-/*"))
    first.post_process = False
    with pytest.raises(FeatureInvalid, match="embedding of its own"):
        attach_to_embedding(first, "bonus", feature, batch)


@pytest.mark.parametrize("bounds", [None, [0, 3, 8], [0, 0, 3, 3, 8]])
def test_mtp_gets_what_the_feature_said_of_each_token(plan_of, bounds):
    from megatron_seams.runtime.model.build import build_model

    model = build_model(plan_of("*-/*/*", seams=("bonus",), features=("ngram",)))
    embedding, added = model.embedding, []
    words = embedding.word_embeddings
    words.register_forward_hook(
        lambda _, args, out: added.append(
            (args[0], out - torch.nn.functional.embedding(args[0], words.weight))
        )
    )
    given = inputs()
    packing = {} if bounds is None else {"packed_seq_params": packed(bounds)}
    labels = given["input_ids"]
    for _ in range(2):  # the second forward begins anew
        added.clear()
        embedding.bonus.seen.clear()
        mask = torch.ones(labels.shape)
        model(**given, labels=labels, loss_mask=mask, **packing)
        assert len(embedding.bonus.seen) == 1
        assert len(added) == 3
        rows = added[0][1]
        ends = [8] if bounds is None else bounds[1:]
        for depth, (ids, found) in enumerate(added):
            for at in range(8):
                end = next(end for end in ends if end > at)
                token = rows[0, at + depth] if at + depth < end else torch.zeros_like(rows[0, 0])
                torch.testing.assert_close(found[0, at], token)
                if at + depth < end:
                    assert ids[0, at] == labels[0, at + depth]


def test_a_forward_of_inference_is_refused(featured, remembering):
    for model, name in ((featured, "bonus"), (remembering, "memo")):
        with pytest.raises(FeatureInvalid, match=f"an inference context, with {name}"):
            model(**inputs(), inference_context=object())
        given = inputs()
        with pytest.raises(FeatureInvalid, match="inference context"):
            model(given["input_ids"], given["position_ids"], None, None, None, object())


# --- at the residual of named layers ------------------------------------------------------------


def remembered(*layers):
    return FeatureEntry(family="engram", layers=layers)


@pytest.fixture(scope="module")
def remembering(plan_of):
    from megatron_seams.runtime.model.build import build_model

    torch.manual_seed(3)
    plan = plan_of("*-R", seams=("memo", "rider"), tokens=R, features=(remembered(2, 3),))
    return build_model(plan)


R = {"R": "recurrent"}


def test_a_residual_feature_is_a_child_of_its_layers_and_native_keys_stay(remembering, plan_of):
    from megatron_seams.runtime.model.build import build_model

    plain = build_model(plan_of("*-R", seams=("rider",), tokens=R))
    added = {f"decoder.layers.{at}.memo.table.weight" for at in (1, 2)}
    assert set(remembering.state_dict()) - set(plain.state_dict()) == added
    assert set(plain.state_dict()) < set(remembering.state_dict())
    sharded = remembering.sharded_state_dict()
    assert {part.key for name, part in sharded.items() if name in added} == added
    memos = [layer.memo for layer in remembering.decoder.layers[1:]]
    assert [memo.layer_number for memo in memos] == [2, 3]
    assert {memo.layer_numbers for memo in memos} == {(2, 3)}


def test_what_it_gives_is_added_to_what_enters_the_layer(remembering):
    entered = []
    layers = remembering.decoder.layers
    handles = [
        layer.register_forward_pre_hook(
            lambda _, __, given: entered.append(given["hidden_states"]), with_kwargs=True
        )
        for layer in layers
    ]
    remembering(**inputs()).sum().backward()
    for handle in handles:
        handle.remove()
    for at in (1, 2):
        memo = layers[at].memo
        before, boundaries = memo.seen.pop()
        assert boundaries is None
        assert torch.equal(entered[at], before + memo.table(inputs()["input_ids"]).transpose(0, 1))
        assert memo.table.weight.grad.abs().sum() > 0


def test_a_residual_feature_knows_the_boundaries_of_its_own_forward(remembering):
    seen = remembering.decoder.layers[1].memo.seen
    seen.clear()
    remembering(**inputs(), packed_seq_params=packed([0, 3, 8]))
    remembering(**inputs())
    assert [None if part is None else part.tolist() for _, part in seen] == [[0, 3, 8], None]


def test_a_copied_model_calls_its_own_residual_features_with_its_own_batch():
    import copy

    from megatron_seams.runtime.model.batch import Batch
    from megatron_seams.runtime.model.features import ResidualFeature

    class Scaled(torch.nn.Module):
        scale = 1

        def forward(self, hidden_states, input_ids, cu_seqlens=None):
            del hidden_states, cu_seqlens
            return input_ids * self.scale

    class Layer(torch.nn.Identity):
        layer_number = 1

    class Stack(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Layer()

        def forward(self, input_ids, hidden_states):
            del input_ids
            return self.layer(hidden_states)

    model = Stack()
    model.layer.memo = Scaled()
    batch = Batch(features=("memo",))
    attached = ResidualFeature(name="memo", feature=model.layer.memo, batch=batch)
    model.layer.register_forward_pre_hook(attached.add, with_kwargs=True)
    batch.watch(model)
    other = copy.deepcopy(model)
    other.layer.memo.scale = 3
    ids = torch.tensor([2])
    given = []
    other.layer.memo.register_forward_hook(lambda *_: given.append(batch.input_ids))
    assert other(ids, torch.tensor([1])).item() == 7
    assert given == [None]  # the original's batch is not the copy's
    assert model(ids, torch.tensor([1])).item() == 3


def test_a_stage_that_is_given_no_ids_says_so(remembering):
    with pytest.raises(FeatureInvalid, match=r"memo at layer 2(?s:.*)no token ids"):
        remembering(None, None, None, decoder_input=torch.zeros(8, 1, 32))


def test_a_residual_feature_is_refused_where_layers_run_outside_of_the_forward(remembering):
    from types import SimpleNamespace

    from megatron_seams.runtime.model.batch import Batch
    from megatron_seams.runtime.model.features import attach_to_layer

    layer, batch = remembering.decoder.layers[0], Batch(features=("memo",))
    config = {"recompute_granularity": None, "cuda_graph_impl": "none"}

    def attach(name="memo", **changes):
        attach_to_layer(
            layer, name, torch.nn.Identity(), batch, SimpleNamespace(**config | changes)
        )

    with pytest.raises(FeatureInvalid, match="runs the layer again"):
        attach(recompute_granularity="full")
    with pytest.raises(FeatureInvalid, match="replayed"):
        attach(cuda_graph_impl="local")
    with pytest.raises(FeatureInvalid, match="already"):
        attach("self_attention")
