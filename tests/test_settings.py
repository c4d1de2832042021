"""Recipes beside the pattern: features, specialised layers, settings that nothing reads."""

import datetime
import re
from typing import Any

import attrs
import pytest

from megatron_seams.errors import (
    FeatureInvalid,
    NoProvider,
    SeamsError,
    SpecialisationInvalid,
    SurfaceUnknown,
    TwoSeams,
    UnknownNativeKey,
    UnknownToken,
    Unsupported,
    UnusedSetting,
    UpstreamForbids,
)
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.planning.requests import read_pattern
from megatron_seams.recipes.pipeline import pipeline_of
from megatron_seams.upstream.source import MegatronSource
from seam_support import (
    TODAY,
    Table,
    environment,
    make_seam,
    only,
    option_environment,
    plan,
    reasons,
    recipe,
    surface,
)

K: Table = {"tokens": {"K": "kda"}}
EXPIRES = TODAY + datetime.timedelta(days=30)

# --- features ---------------------------------------------------------------------------------


def memory(**changes: Any) -> Any:
    return make_seam("memory", "ngram", placement="embedding", **changes)


def features(*families: str, **more: Any) -> Table:
    return {"features": [{"family": family, **more} for family in families]}


def test_a_feature_is_planned_beside_the_layers() -> None:
    made = plan(recipe("M", **features("ngram")), environment(memory()))
    (feature,) = made.features
    assert (feature.family, feature.placement, feature.seam.name) == (
        "ngram",
        "embedding",
        "memory",
    )
    assert made.seams == (feature.seam,)
    assert lowered_pattern(made) == "M"
    beside_mtp = plan(recipe("M/M", **features("ngram")), environment(memory()))
    assert [it.family for it in beside_mtp.features] == ["ngram"]


@pytest.mark.parametrize(
    ("asked", "kind", "says"),
    [
        (recipe("M|M/M", **features("ngram")), FeatureInvalid, "MTP suffix and several stages"),
        (recipe("M", **features("ngram", "ngram")), FeatureInvalid, "twice"),
        (recipe("M", **features("mamba")), FeatureInvalid, "mamba is a block"),
        (
            recipe("M", **features("ngram", placement="residual")),
            FeatureInvalid,
            "attaches at 'embedding'",
        ),
        (recipe("M", **features("engram")), NoProvider, "no installed seam"),
        (recipe("M", **features("unheard_of")), NoProvider, "no installed seam"),
    ],
)
def test_a_feature_that_cannot_be_placed_is_refused(
    asked: Any, kind: type[SeamsError], says: str
) -> None:
    assert says in only(reasons(asked, environment(memory())), kind).found


def engram(*layers: int, pattern: str = "MMMMMMMM", **tables: Any) -> Any:
    return recipe(pattern, **features("engram", layers=list(layers)), **tables)


def lasting() -> Any:
    return environment(make_seam("lasting", "engram", placement="residual"))


@pytest.mark.parametrize(
    ("asked", "stages", "place"),
    [
        (engram(7, 2), (0,), "residual of layers 2, 7, stage 0"),
        (engram(2, pattern="MM|MM"), (0,), "residual of layers 2, stage 0"),
        # Upstream gives the stage of MTP depths the token ids that they need.
        (engram(1, 4, pattern="MM|MM/M"), (0, 1), "residual of layers 1, 4, stage 0, 1"),
        (engram(4, parallelism={"pipeline-parallel": 2}), (0,), "residual of layers 4, stage 0"),
    ],
)
def test_a_residual_feature_is_planned_at_its_layers_and_their_stages(
    asked: Any, stages: tuple[int, ...], place: str
) -> None:
    (feature,) = plan(asked, lasting()).features
    assert feature.stages == stages
    assert feature.place == place


@pytest.mark.parametrize(
    ("asked", "says", "positions"),
    [
        (engram(), "names none", ()),
        (engram(2, 2), "a number twice: [2, 2]", ()),
        (engram(0, 9, 12), "layers 1 to 8, and no 0, 9, 12", ()),
        (engram(1, 3, pattern="MM|MM|MM"), "no token ids, of 3 stages", (3,)),
        (engram(3, 5, pattern="MM|MM|MM/M"), "no token ids, of 3 stages", (3,)),
        (engram(4, 5, parallelism={"pipeline-parallel": 2}), "of 2 stages", (5,)),
    ],
)
def test_a_residual_feature_without_layers_or_ids_is_refused(
    asked: Any, says: str, positions: tuple[int, ...]
) -> None:
    fault = only(reasons(asked, lasting()), FeatureInvalid)
    assert says in fault.found
    assert fault.positions == positions


def test_a_stage_without_token_ids_is_named() -> None:
    fault = only(reasons(engram(1, 3, 5, pattern="MM|MM|MM"), lasting()), FeatureInvalid)
    assert fault.asked == "feature engram at layers 3, 5, on stage 1, 2"


@pytest.mark.parametrize(
    ("ends", "stages"),
    [
        ({}, [0, 0, 1, 1, 2, 2, 3, 3]),
        ({"first": 1, "last": 3}, [0, 1, 1, 2, 2, 3, 3, 3]),
        ({"first": 2}, [0, 0, 1, 1, 2, 2, 3, 3]),
        ({"last": 5}, [0, 1, 2, 3, 3, 3, 3, 3]),
    ],
)
def test_stages_are_those_that_upstream_cuts_where_the_pattern_says_none(
    ends: dict[str, int], stages: list[int]
) -> None:
    sizes = {f"num_layers_in_{end}_pipeline_stage": size for end, size in ends.items()}
    asked = recipe("MMMMMMMM", megatron=sizes, parallelism={"pipeline-parallel": 4})
    assert list(pipeline_of(asked, read_pattern(asked)[0]).stages) == stages


def test_layers_are_for_a_residual_feature_alone() -> None:
    asked = recipe("M", **features("ngram", layers=[1]))
    fault = only(reasons(asked, environment(memory())), FeatureInvalid)
    assert "attaches at 'embedding', which no layer is" in fault.found


@pytest.mark.parametrize("installed", [True, False])
def test_a_feature_family_is_no_layer_of_a_pattern(installed: bool) -> None:
    where = environment(*([memory()] if installed else []))
    for asked in (
        recipe("MN", tokens={"N": "ngram"}),
        recipe("MM", layers=[{"positions": [2], "family": "ngram"}]),
    ):
        fault = only(reasons(asked, where), FeatureInvalid)
        assert fault.positions == (2,)
        assert "[[features]]" in fault.next


def test_two_seams_for_a_feature_are_refused_and_one_may_be_pinned() -> None:
    both = environment(memory(), make_seam("hashes", "ngram", placement="embedding"))
    only(reasons(recipe("M", **features("ngram")), both), TwoSeams)
    made = plan(recipe("M", **features("ngram"), policy={"pin": {"ngram": "hashes"}}), both)
    assert made.features[0].seam.name == "hashes"


def test_a_feature_is_held_to_what_it_supports() -> None:
    asked = recipe("MM", **features("ngram"), parallelism={"tensor-parallel": 2})
    only(reasons(asked, environment(memory(supports=[]))), Unsupported)


# --- settings that nothing reads --------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "key"),
    [
        ({"seams": {"kbd": {"heads": 4}}}, "seams.kbd"),
        ({"policy": {"experiments": ["kbd"]}}, "policy.experiments: kbd"),
        ({"policy": {"pin": {"recurrent": "kda"}}}, "policy.pin.recurrent"),
        (
            {"override": [{"family": "gdn", "seam": "kda", "reason": "none", "expires": EXPIRES}]},
            "override",
        ),
    ],
)
def test_a_setting_that_nothing_in_the_plan_reads_is_refused(tables: Table, key: str) -> None:
    fault = only(reasons(recipe("MK", **K, **tables), environment(make_seam())), UnusedSetting)
    assert fault.key == key


def test_a_setting_that_native_has_made_idle_is_a_finding_and_stops_nothing() -> None:
    retired = make_seam("latent", "mla", fallback="native", accepts={"symbol-name": "MLA"})
    asked = recipe("+", seams={"latent": {"heads": 4}}, policy={"pin": {"mla": "latent"}})
    made = plan(asked, environment(retired))
    assert {finding.key for finding in made.findings} == {"seams.latent", "policy.pin.mla"}
    assert made.options == {}


def test_options_reach_the_plan_for_chosen_seams() -> None:
    made = plan(recipe("K", seams={"kda": {"heads": 4}}, **K), environment(make_seam()))
    assert made.options == {"kda": {"heads": 4}}


def megatron(**keys: Any) -> Table:
    return {"megatron": keys}


def test_a_native_setting_that_this_megatron_does_not_have_is_refused() -> None:
    where = option_environment(make_seam())
    plan(recipe("M", **megatron(hidden_size=64)), where)
    fault = only(reasons(recipe("M", **megatron(hidden_sise=64)), where), UnknownNativeKey)
    assert fault.key == "megatron.hidden_sise"
    smoke = recipe("M", smoke={"megatron": {"hidden_sise": 64}})
    assert only(reasons(smoke, where), UnknownNativeKey).key == "smoke.megatron.hidden_sise"


def test_settings_that_cannot_be_read_are_one_reason_beside_the_others() -> None:
    seam = make_seam(fallback="native", accepts={"config-field": "engram_layers"})
    source = MegatronSource(origin="a test", read=lambda _: b"def (")
    where = attrs.evolve(option_environment(seam), source=source)
    found = reasons(recipe("MZ", **megatron(hidden_size=64, mtp_num_layers=1)), where)
    assert [type(it) for it in found] == [SurfaceUnknown, UnknownNativeKey, UnknownToken]
    assert "the settings of the megatron-core" in found[0].asked
    # What no setting is needed for goes on: the seam's field is not there for certain.
    assert plan(recipe("K", **K), where).seams == (seam,)
    assert where.findings == ()


@pytest.mark.parametrize(
    ("key", "decided_by"),
    [
        ("num_layers", "model.depth"),
        ("hybrid_layer_pattern", "model.pattern"),
        ("hybrid_override_pattern", "model.pattern"),
        ("is_hybrid_model", "model.pattern"),
        ("mtp_num_layers", "the MTP suffix"),
        ("tensor_model_parallel_size", "parallelism.tensor-parallel"),
        ("pipeline_model_parallel_size", "parallelism.pipeline-parallel"),
        ("virtual_pipeline_model_parallel_size", "'|' of model.pattern"),
        ("expert_model_parallel_size", "parallelism.expert-parallel"),
        ("context_parallel_size", "parallelism.context-parallel"),
        ("sequence_parallel", "parallelism.sequence-parallel"),
    ],
)
def test_a_native_setting_that_another_table_decides_is_refused(key: str, decided_by: str) -> None:
    fault = only(
        reasons(recipe("M", **megatron(**{key: 1})), option_environment(make_seam())),
        UnknownNativeKey,
    )
    assert decided_by in fault.found


def test_the_fused_projection_of_native_latent_attention_takes_no_seam() -> None:
    seam = make_seam(slots=["mla_layer"])
    text = b"@dataclass\nclass TransformerConfig:\n    mla_down_proj_fusion: bool = False\n"
    source = MegatronSource(
        origin="a test",
        read=lambda path: text if path.endswith("transformer_config.py") else None,
    )
    made = environment(seam)
    where = Environment(surface=made.surface, discovery=made.discovery, source=source)
    asked = recipe("K", **K, **megatron(mla_down_proj_fusion=True))
    assert only(reasons(asked, where), UpstreamForbids).key == "megatron.mla_down_proj_fusion"
    plan(recipe("K", **K, **megatron(mla_down_proj_fusion=False)), where)


# --- specialising single layers ---------------------------------------------------------------


def layers(*entries: Table) -> Table:
    return {"layers": list(entries)}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"positions": [5], "family": "dsa"}, "the layers are 1 to 4"),
        ({"positions": [0], "family": "dsa"}, "the layers are 1 to 4"),
        ({"positions": [-1], "family": "dsa"}, "the layers are 1 to 4"),
        ({"positions": [1], "family": "dsa", "of": "moe"}, "the pattern spells attention there"),
        ({"positions": [1, 1], "family": "dsa"}, "positions has a number twice: [1, 1]"),
    ],
)
def test_a_layers_entry_that_fits_no_layer_is_refused(entry: Table, says: str) -> None:
    asked = recipe("AE", dialect="nam", depth=4, **layers(entry))
    found = reasons(asked, environment(native=surface(exclusive=False)))
    assert says in only(found, SpecialisationInvalid).found


def test_two_entries_for_one_layer_are_refused() -> None:
    asked = recipe(
        "AE",
        dialect="nam",
        **layers({"positions": [1], "family": "dsa"}, {"positions": [1], "family": "mla"}),
    )
    fault = only(reasons(asked, environment()), SpecialisationInvalid)
    assert (fault.positions, fault.key) == ((1,), "layers[1]")


def test_a_specialised_family_does_not_fall_back_to_what_its_token_spells() -> None:
    asked = recipe("AM", dialect="nam", depth=4, families={"mamba": "mamba3"})
    fault = only(reasons(asked, environment()), NoProvider)
    assert fault.positions == (2, 4)
    assert re.search(
        "specialises mamba as mamba3, and mamba .*is not taken in its place", fault.found
    )


def test_a_family_that_some_layers_spell_and_one_is_made_is_refused_with_both() -> None:
    asked = recipe("KM", tokens={"K": "kda"}, layers=[{"positions": [2], "family": "kda"}])
    fault = only(reasons(asked, environment()), NoProvider)
    assert fault.positions == (1, 2)
    assert "the recipe makes it kda, and mamba" in fault.found
