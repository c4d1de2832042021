"""Both seams in a real model of one process: nothing at step 0, and what is refused."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_seams.base.structure import structure
from megatron_seams.errors import FeatureInvalid, Refusal
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.records.plan_json import describe_plan

pytestmark = [pytest.mark.megatron, pytest.mark.release]

here = functools.cache(read_environment)

SEAMS = {"ngram": "ngram_hash", "engram": "engram"}
ROWS = {"heads": 2, "table-rows": 100, "width": 4}
NGRAM: dict[str, Any] = {"family": "ngram"}
ENGRAM: dict[str, Any] = {"family": "engram", "layers": [1, 2]}


def plan_of(*features: dict[str, Any], pattern: str = "*-", **tables: Any) -> Plan:
    used = [SEAMS[feature["family"]] for feature in features]
    table = {
        "schema": 1,
        "model": {"name": "tiny", "pattern": pattern},
        "features": list(features),
        "seams": dict.fromkeys(used, ROWS),
        "megatron": {
            "vocab_size": 64,
            "max_sequence_length": 16,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "position_embedding_type": "rope",
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
        **tables,
    }
    recipe, faults = structure(Recipe, table)
    assert recipe is not None, faults
    return resolve(recipe, here())


@pytest.fixture(scope="module", autouse=True)
def _world() -> Iterator[None]:
    from megatron_seams.runtime.cpu.world import cpu_world

    with cpu_world():
        yield


def built(plan: Plan) -> Any:
    from megatron_seams.runtime.model.build import build_model

    torch.manual_seed(4)
    return build_model(plan)


def losses(model: Any) -> Any:
    ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(16).expand(2, -1)
    return model(ids, positions, None, labels=ids, loss_mask=torch.ones(2, 16))


@pytest.mark.parametrize("features", [(NGRAM,), (ENGRAM,), (NGRAM, ENGRAM)])
def test_at_step_0_the_model_computes_bitwise_what_it_computes_without(
    features: tuple[dict[str, Any], ...],
) -> None:
    plain, with_them = built(plan_of()), built(plan_of(*features))
    expected, found = losses(plain), losses(with_them)
    assert torch.equal(found, expected)
    for loss in (expected, found):
        loss.sum().backward()
    native = dict(plain.named_parameters())
    shared = {name: one for name, one in with_them.named_parameters() if name in native}
    assert shared.keys() == native.keys()
    assert all(torch.equal(one, native[name]) for name, one in shared.items())
    assert all(torch.equal(one.grad, native[name].grad) for name, one in shared.items())
    # And something of each feature moves from there.
    moved = {name for name, one in with_them.named_parameters() if one.grad.any()} - native.keys()
    assert {name.split(".")[-2] for name in moved} == {SEAMS[one["family"]] for one in features}


def test_mtp_over_several_stages_is_refused_at_the_embedding() -> None:
    stages = {"parallelism": {"pipeline-parallel": 2}}
    with pytest.raises(Refusal, match="several stages") as caught:
        plan_of(NGRAM, pattern="*-|*-/*-", **stages)
    assert [type(reason) for reason in caught.value.reasons] == [FeatureInvalid]


def test_on_one_stage_mtp_trains_the_tables_too() -> None:
    plain, model = built(plan_of(pattern="*-/*-")), built(plan_of(NGRAM, pattern="*-/*-"))
    assert torch.equal(losses(plain), losses(model))
    losses(model).sum().backward()
    assert any(one.grad.any() for one in model.embedding.ngram_hash.parameters())


def test_the_memory_of_a_layer_has_nothing_to_do_with_mtp_and_trains_beside_it() -> None:
    plain, model = built(plan_of(pattern="*-/*-")), built(plan_of(ENGRAM, pattern="*-/*-"))
    assert torch.equal(losses(plain), losses(model))
    layers = [name for name, _ in model.named_modules() if name.endswith(".engram")]
    assert layers == ["decoder.layers.0.engram", "decoder.layers.1.engram"]
    losses(model).sum().backward()
    assert model.decoder.layers[1].engram.value.grad.any()


def test_a_memory_on_a_stage_without_token_ids_is_refused_by_its_stage() -> None:
    asked = {"pattern": "*-|*-|*-", "parallelism": {"pipeline-parallel": 3}}
    with pytest.raises(Refusal, match="on stage 1") as caught:
        plan_of({"family": "engram", "layers": [2, 3]}, **asked)
    assert [reason.positions for reason in caught.value.reasons] == [(3,)]


@pytest.mark.parametrize("feature", [NGRAM, ENGRAM])
@pytest.mark.parametrize(
    ("tables", "key"),
    [
        ({"parallelism": {"context-parallel": 2}}, "context-parallel"),
        ({"runtime": {"inference": True}}, "inference"),
    ],
)
def test_context_parallelism_and_decoding_are_refused(
    feature: dict[str, Any], tables: dict[str, Any], key: str
) -> None:
    with pytest.raises(Refusal) as caught:
        plan_of(feature, **tables)
    assert [reason.key for reason in caught.value.reasons] == [key]


def test_packing_without_boundaries_is_refused_by_both() -> None:
    for feature in (NGRAM, ENGRAM):
        model = built(plan_of(feature, runtime={"packed-sequences": True}))
        with pytest.raises(FeatureInvalid, match="end-of-document-id"):
            losses(model)


def test_a_receipt_has_each_feature_with_place_owner_and_fallback() -> None:
    described = describe_plan(plan_of(NGRAM, ENGRAM))["features"]
    keys = ("family", "placement", "layers", "stages", "seam", "owner", "upstream_fallback")
    assert [tuple(one[key] for key in keys) for one in described] == [
        ("ngram", "embedding", [], [0], "ngram_hash", "@megatron-seams/memory", "refuse"),
        ("engram", "residual", [1, 2], [0], "engram", "@megatron-seams/memory", "refuse"),
    ]


def test_a_checkpoint_holds_everything_under_the_layers_global_number(tmp_path: Path) -> None:
    from megatron_seams.runtime.checkpoint import save_checkpoint, saved_entries

    model = built(plan_of(NGRAM, ENGRAM))
    save_checkpoint(model, "a receipt", tmp_path)
    saved = saved_entries(tmp_path)
    state = {key: value for key, value in model.state_dict().items() if "gram" in key}
    assert len(state) == 8 + 2 * 13
    assert {key: saved[key].shape for key in state} == {
        key: tuple(value.shape) for key, value in state.items()
    }
