"""Resolution: native first, exactly one seam second, and every reason at once otherwise."""

import datetime
import itertools
import re
from typing import Any

import pytest

from megatron_seams.discovery import BrokenSeam
from megatron_seams.environment import Environment
from megatron_seams.errors import (
    ExperimentNotNamed,
    FeatureInvalid,
    ManifestInvalid,
    MegatronMissing,
    NativeContested,
    NativeOption,
    NoCarrier,
    NoProvider,
    OnlyBroken,
    OverrideInvalid,
    SeamInMtp,
    SeamsError,
    SpecialisationInvalid,
    TwoSeams,
    UnknownNativeKey,
    UnknownToken,
    Unsupported,
    UnusedSetting,
    UpstreamForbids,
    WrongMegatron,
)
from megatron_seams.lowering import lowered_pattern
from megatron_seams.plan import Custom, Native
from megatron_seams.seam import CAPABILITIES
from megatron_seams.sources import MegatronSource, missing
from megatron_seams.surface import NativeSurface
from seam_support import (
    TODAY,
    Table,
    environment,
    make_seam,
    plan,
    reasons,
    recipe,
    refusal,
    surface,
)

K: Table = {"tokens": {"K": "kda"}}
EXPIRES = TODAY + datetime.timedelta(days=30)


def only(found: list[SeamsError], kind: type[SeamsError]) -> SeamsError:
    """The one reason, which is of this kind."""
    assert [type(fault) for fault in found] == [kind], found
    return found[0]


def broken(name: str, family: str | None) -> BrokenSeam:
    """A seam whose manifest is at fault; with a family if so much could be read."""
    fault = ManifestInvalid(asked="a manifest", found=f"fault of {name}", next="mend it")
    manifest = make_seam(name, family).manifest if family else None
    return BrokenSeam(
        name=name, distribution=f"acme-{name}", version="3.1", faults=(fault,), manifest=manifest
    )


# --- native first -----------------------------------------------------------------------------


def test_native_builds_what_it_has() -> None:
    made = plan(recipe("MG*-E", depth=7), environment())
    assert [layer.provider.label for layer in made.layers] == ["native"] * 7
    assert [layer.provider.symbol for layer in made.layers] == list("MG*-EMG")
    assert [layer.provider.slot for layer in made.layers[:5]] == [
        "mamba_layer",
        "gdn_layer",
        "attention_layer",
        "mlp_layer",
        "moe_layer",
    ]
    assert made.seams == ()
    assert "native as 'M'" in made.layers[0].why


def test_an_installed_seam_is_superseded_once_native_builds_its_equivalent() -> None:
    seam = make_seam(
        "latent", "mla", fallback="native", accepts={"symbol-name": "MLA"}, requires="<0.19"
    )
    (layer,) = plan(recipe("+"), environment(seam)).layers
    assert isinstance(layer.provider, Native)
    assert "supersedes seam latent" in layer.why


def test_before_native_builds_it_the_seam_does() -> None:
    seam = make_seam(
        "latent",
        "mla",
        fallback="native",
        accepts={"symbol-name": "MLA"},
        slots=["attention_layer", "mamba_layer"],
        requires=">=0.17,<0.19",
    )
    older = environment(seam, native=surface("0.18.2", without=["MLA"]))
    (layer,) = plan(recipe("+"), older).layers
    assert isinstance(layer.provider, Custom)
    assert (layer.provider.seam.name, layer.provider.slot) == ("latent", "attention_layer")


def test_a_seam_that_accepts_no_equivalent_contests_native() -> None:
    seam = make_seam("latent", "mla", owner="@acme/latent")
    fault = only(reasons(recipe("M+"), environment(seam)), NativeContested)
    assert fault.positions == (2,)
    assert "'+'" in fault.found
    assert "acme-latent 1.0 (owner @acme/latent)" in fault.found
    assert 'symbol-name = "MLA"' in fault.next


def test_an_experiment_that_no_recipe_names_contests_nothing() -> None:
    seam = make_seam("latent", "mla", status="experiment")
    assert plan(recipe("+"), environment(seam)).seams == ()


def test_two_seams_that_accept_different_symbols_contest_the_equivalent() -> None:
    seams = [
        make_seam(name, "kda", fallback="native", accepts={"symbol-name": constant})
        for name, constant in (("one", "GDN"), ("two", "MAMBA"))
    ]
    fault = only(reasons(recipe("K", **K), environment(*seams)), NativeContested)
    assert "GDN and MAMBA" in fault.found


# --- exactly one seam second ------------------------------------------------------------------


def test_the_one_seam_is_taken_and_named() -> None:
    made = plan(recipe("MK", depth=5, **K), environment(make_seam()))
    assert [layer.provider.label for layer in made.layers] == [
        "native",
        "seam kda",
        "native",
        "seam kda",
        "native",
    ]
    assert lowered_pattern(made) == "MMMMM"
    assert sorted(made.custom_layers()) == [2, 4]
    assert "not native" in made.layers[1].why


def test_two_seams_are_refused_with_both_claimants() -> None:
    seams = [
        make_seam("slow", "kda", version="2.0", owner="@acme/slow"),
        make_seam("fast", "kda", distribution="rapid", owner="@rapid/kernels"),
    ]
    fault = only(reasons(recipe("MKMK", **K), environment(*seams)), TwoSeams)
    assert fault.positions == (2, 4)
    assert "'fast' of rapid 1.0 (owner @rapid/kernels)" in fault.found
    assert "'slow' of acme-slow 2.0 (owner @acme/slow)" in fault.found
    assert "[policy.pin] kda" in fault.next


def test_a_recipe_pins_one_of_two() -> None:
    both = environment(make_seam("slow", "kda"), make_seam("fast", "kda"))
    for name in ("slow", "fast"):
        (layer,) = plan(recipe("K", policy={"pin": {"kda": name}}, **K), both).layers
        assert isinstance(layer.provider, Custom)
        assert layer.provider.seam.name == name
        assert "the recipe pins" in layer.why


def test_a_pin_to_a_seam_that_is_not_there_is_refused_with_those_that_are() -> None:
    asked = recipe("K", policy={"pin": {"kda": "lost"}}, **K)
    fault = only(reasons(asked, environment(make_seam("fast", "kda"))), NoProvider)
    assert fault.key == "policy.pin.kda"
    assert "fast" in fault.found


def test_a_pin_to_a_seam_for_another_megatron_says_what_is_wrong_with_that_one() -> None:
    where = environment(
        make_seam("aged", "kda", requires="<0.10"), make_seam("stale", "kda", requires="<0.18")
    )
    asked = recipe("K", policy={"pin": {"kda": "stale"}}, **K)
    fault = only(reasons(asked, where), OnlyBroken)
    assert "[SEAM-D08]" in fault.found
    assert "<0.18" in fault.found
    assert "aged" not in fault.found


def test_a_pin_to_a_broken_seam_says_what_is_broken_and_takes_no_other() -> None:
    where = environment(make_seam("fast", "kda"), broken=[broken("slow", "kda")])
    asked = recipe("K", policy={"pin": {"kda": "slow"}}, **K)
    fault = only(reasons(asked, where), OnlyBroken)
    assert "fault of slow" in fault.found


def test_the_order_in_which_seams_are_found_changes_nothing() -> None:
    seams = [make_seam(name, "kda") for name in "abc"]
    said = {
        str(refusal(recipe("KM", **K), environment(*order)))
        for order in itertools.permutations(seams)
    }
    assert len(said) == 1


# --- none -------------------------------------------------------------------------------------


def test_no_provider_names_what_the_recipe_says_to_install() -> None:
    asked = recipe("AR", dialect="nam", depth=4, install={"recurrent": "megatron-seams-m2rnn"})
    fault = only(reasons(asked, environment()), NoProvider)
    assert fault.positions == (2, 4)
    assert "'recurrent'" in fault.asked
    assert "'R'" in fault.asked
    assert fault.next == "pip install megatron-seams-m2rnn"


def test_no_provider_without_advice_says_what_a_manifest_would_have_to_claim() -> None:
    fault = only(reasons(recipe("K", **K), environment()), NoProvider)
    assert 'family = "kda"' in fault.next


@pytest.mark.parametrize(
    ("name", "family"), [("other", "kda"), ("kda", None)], ids=["by manifest", "by name"]
)
def test_a_broken_seam_that_was_the_only_one_is_what_the_refusal_speaks_of(
    name: str, family: str | None
) -> None:
    fault = only(reasons(recipe("K", **K), environment(broken=[broken(name, family)])), OnlyBroken)
    assert f"acme-{name} 3.1" in fault.found
    assert f"[SEAM-D04] fault of {name}" in fault.found


def test_a_broken_seam_is_no_candidate_and_does_not_stop_the_sound_one() -> None:
    made = plan(recipe("K", **K), environment(make_seam(), broken=[broken("other", "kda")]))
    assert made.seams[0].name == "kda"
    assert [type(finding) for finding in made.findings] == [ManifestInvalid]


def test_a_broken_seam_of_another_family_is_not_to_blame() -> None:
    where = environment(broken=[broken("other", "ngram")])
    only(reasons(recipe("K", **K), where), NoProvider)


def test_a_seam_for_another_megatron_is_broken_and_says_its_range() -> None:
    seam = make_seam(requires=">=0.17,<0.18")
    fault = only(reasons(recipe("K", **K), environment(seam)), OnlyBroken)
    assert "SEAM-D08" in fault.found
    assert ">=0.17,<0.18" in fault.found
    assert "megatron-core 0.19.2" in fault.found


def test_of_two_seams_the_one_for_this_megatron_is_taken() -> None:
    where = environment(make_seam("aged", "kda", requires="<0.18"), make_seam("young", "kda"))
    made = plan(recipe("K", **K), where)
    assert made.seams[0].name == "young"
    assert [type(finding) for finding in made.findings] == [WrongMegatron]


@pytest.mark.parametrize(
    ("version", "inside"), [("0.17.0", True), ("0.19.0rc1", True), ("0.20.0", False)]
)
def test_a_range_is_held_to_the_version_in_hand(version: str, inside: bool) -> None:
    seam = make_seam(requires=">=0.17,<0.20")
    where = environment(seam, native=surface(version))
    assert (where.out_of_range(seam) is None) == inside


def test_without_any_megatron_nothing_is_native_and_that_is_said_first() -> None:
    bare = environment(make_seam(), native=NativeSurface(), faults=[missing()])
    found = reasons(recipe("MK", **K), bare)
    assert [type(fault) for fault in found] == [MegatronMissing, NoProvider]
    assert found[1].positions == (1,)


# --- experiments ------------------------------------------------------------------------------


def test_an_experiment_is_not_chosen_unless_the_recipe_names_it() -> None:
    seam = make_seam(status="experiment")
    fault = only(reasons(recipe("K", **K), environment(seam)), ExperimentNotNamed)
    assert 'experiments = ["kda"]' in fault.next
    made = plan(recipe("K", policy={"experiments": ["kda"]}, **K), environment(seam))
    assert made.layers[0].provider.label == "seam kda (experiment)"


def test_an_experiment_does_not_contend_with_a_seam_unless_it_is_named() -> None:
    where = environment(make_seam("sound", "kda"), make_seam("trial", "kda", status="experiment"))
    assert plan(recipe("K", **K), where).seams[0].name == "sound"
    only(reasons(recipe("K", policy={"experiments": ["trial"]}, **K), where), TwoSeams)


# --- overrides --------------------------------------------------------------------------------


def override(**changes: Any) -> Table:
    entry = {"family": "mla", "seam": "latent", "reason": "a resumed run", "expires": EXPIRES}
    return {"override": [{**entry, **changes}]}


def test_an_override_takes_a_seam_over_native_until_its_date() -> None:
    where = environment(make_seam("latent", "mla"))
    for expires in (EXPIRES, TODAY):
        (layer,) = plan(recipe("+", **override(expires=expires)), where).layers
        assert isinstance(layer.provider, Custom)
        assert "a resumed run" in layer.why


def test_an_expired_override_refuses_and_does_not_fall_back_to_native() -> None:
    where = environment(make_seam("latent", "mla"))
    yesterday = TODAY - datetime.timedelta(days=1)
    fault = only(reasons(recipe("+", **override(expires=yesterday)), where), OverrideInvalid)
    assert str(yesterday) in fault.found
    assert "a resumed run" in fault.found


@pytest.mark.parametrize("seams", [[], [make_seam("other", "mla")], [make_seam("latent", "gdn")]])
def test_an_override_to_a_seam_that_is_not_there_refuses(seams: list[Any]) -> None:
    only(reasons(recipe("+", **override()), environment(*seams)), OverrideInvalid)


def test_an_override_to_a_seam_for_another_megatron_refuses() -> None:
    where = environment(make_seam("latent", "mla", requires="<0.18"))
    fault = only(reasons(recipe("+", **override()), where), OverrideInvalid)
    assert "<0.18" in fault.found


def test_two_overrides_for_one_family_refuse() -> None:
    entry = override()["override"][0]
    where = environment(make_seam("latent", "mla"))
    fault = only(reasons(recipe("+", override=[entry, entry]), where), OverrideInvalid)
    assert "2 overrides" in fault.found


# --- upstream ships the family as an option ---------------------------------------------------


def option_environment(seam: Any) -> Environment:
    """A Megatron whose configuration has the field ``engram_layers``."""
    text = b"class TransformerConfig:\n    engram_layers: int = 0\n    hidden_size: int = 0\n"
    source = MegatronSource(
        origin="a test",
        read=lambda path: text if path.endswith("transformer_config.py") else None,
    )
    made = environment(seam)
    return Environment(surface=made.surface, discovery=made.discovery, source=source)


def test_a_family_that_megatron_ships_as_an_option_is_refused_with_the_option() -> None:
    seam = make_seam(fallback="native", accepts={"config-field": "engram_layers"})
    fault = only(reasons(recipe("K", **K), option_environment(seam)), NativeOption)
    assert "engram_layers" in fault.found
    later = make_seam(fallback="native", accepts={"config-field": "not_yet"})
    assert plan(recipe("K", **K), option_environment(later)).seams == (later,)


# --- what upstream forbids --------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", ["*D", "*+", "M*M*/MD/MD", "M*|MD", "MD/*", "*|M|+", "M+/M*/M*"]
)
def test_attention_beside_latent_or_sparse_is_forbidden_over_the_whole_pattern(
    pattern: str,
) -> None:
    fault = only(reasons(recipe(pattern), environment()), UpstreamForbids)
    assert "Not supported to have both" in fault.found


@pytest.mark.parametrize("pattern", ["D+", "MD|M+", "M*|M*/*", "+D/+"])
def test_what_upstream_allows_is_not_forbidden(pattern: str) -> None:
    plan(recipe(pattern), environment())


def latent(**changes: Any) -> Any:
    return make_seam(
        "latent",
        "mla",
        fallback="native",
        accepts={"symbol-name": "MLA"},
        requires="<0.19",
        **changes,
    )


@pytest.mark.parametrize(
    ("pattern", "slot", "lowered"),
    [
        ("M+", "attention_layer", "M*"),
        ("D+", "mamba_layer", "DM"),
        ("+|D", "mamba_layer", "M|D"),
        ("+M/D/D", "mamba_layer", "MM/D/D"),
    ],
)
def test_a_second_carrier_is_taken_where_the_first_lowers_to_what_upstream_forbids(
    pattern: str, slot: str, lowered: str
) -> None:
    seam = latent(slots=["attention_layer", "mamba_layer"])
    older = environment(seam, native=surface("0.18.2", without=["MLA"]))
    made = plan(recipe(pattern), older)
    (carried,) = {p.slot for p in made.custom_layers().values()}
    assert (carried, lowered_pattern(made)) == (slot, lowered)


def test_a_seam_whose_every_carrier_is_forbidden_is_refused_with_what_was_tried() -> None:
    older = environment(
        latent(slots=["attention_layer"]), native=surface("0.18.2", without=["MLA"])
    )
    fault = only(reasons(recipe("D+"), older), NoCarrier)
    assert "attention_layer: Not supported" in fault.found


def test_the_family_is_forbidden_beside_attention_even_where_its_carrier_is_not() -> None:
    # Lowered it would read M*, which upstream accepts; latent attention beside * it does not.
    older = environment(latent(slots=["mamba_layer"]), native=surface("0.18.2", without=["MLA"]))
    with_rule = surface("0.19.2")
    older = Environment(
        surface=NativeSurface(
            version=older.surface.version,
            symbols=older.surface.symbols,
            slots=older.surface.slots,
            separators=older.surface.separators,
            exclusions=with_rule.exclusions,
        ),
        discovery=older.discovery,
    )
    only(reasons(recipe("*+"), older), UpstreamForbids)


def test_a_slot_that_this_megatron_does_not_have_is_passed_over() -> None:
    seam = make_seam(slots=["window_layer", "gdn_layer"])
    made = plan(recipe("K", **K), environment(seam))
    assert lowered_pattern(made) == "G"


def test_a_seam_without_any_slot_of_this_megatron_is_refused() -> None:
    fault = only(
        reasons(recipe("K", **K), environment(make_seam(slots=["window_layer"]))), NoCarrier
    )
    assert "window_layer" in fault.found
    assert "mamba_layer" in fault.found


def test_two_seams_on_slots_that_may_not_meet_are_carried_so_that_they_do_not() -> None:
    one = make_seam("one", "kda", slots=["attention_layer"])
    two = make_seam("two", "lightning", slots=["dsa_layer", "mamba_layer"])
    made = plan(recipe("KL", tokens={"K": "kda", "L": "lightning"}), environment(one, two))
    assert lowered_pattern(made) == "*M"


def test_only_the_seam_that_has_no_legal_carrier_is_refused_for_it() -> None:
    older = environment(
        latent(slots=["attention_layer"]), make_seam(), native=surface("0.18.2", without=["MLA"])
    )
    fault = only(reasons(recipe("D+K", **K), older), NoCarrier)
    assert "'latent'" in fault.asked


def test_two_seams_that_no_choice_of_carriers_keeps_apart_are_both_refused() -> None:
    one = make_seam("one", "kda", slots=["attention_layer"])
    two = make_seam("two", "lightning", slots=["dsa_layer", "mla_layer"])
    asked = recipe("KL", tokens={"K": "kda", "L": "lightning"})
    found = reasons(asked, environment(one, two))
    assert [type(fault) for fault in found] == [NoCarrier, NoCarrier]
    assert all("Not supported" in fault.found for fault in found)


def test_a_missing_carrier_does_not_hide_what_upstream_forbids() -> None:
    found = reasons(recipe("*DK", **K), environment(make_seam(slots=["window_layer"])))
    assert [type(fault) for fault in found] == [UpstreamForbids, NoCarrier]


# --- MTP --------------------------------------------------------------------------------------


def test_a_seam_in_an_mtp_suffix_is_refused() -> None:
    found = reasons(recipe("MK/K/K", **K), environment(make_seam()))
    assert "'K' of MTP part 'K'" in only(found, SeamInMtp).asked
    only(reasons(recipe("MK/MK", **K), environment(make_seam())), SeamInMtp)


def test_native_layers_of_an_mtp_suffix_are_planned_with_numbers_of_their_own() -> None:
    made = plan(recipe("MK/*E/*E", **K), environment(make_seam()))
    assert [(layer.position, layer.family) for layer in made.mtp] == [(1, "attention"), (2, "moe")]
    assert lowered_pattern(made) == "MM/*E/*E"


def test_a_family_that_only_the_mtp_suffix_needs_is_refused_once() -> None:
    only(reasons(recipe("M/K/K", **K), environment()), NoProvider)
    only(reasons(recipe("MK/K/K", **K), environment()), NoProvider)
    only(reasons(recipe("M/?"), environment()), UnknownToken)


# --- what a seam supports, and stages ---------------------------------------------------------

ASKED: dict[str, Table] = {
    "tensor-parallel": {"parallelism": {"tensor-parallel": 2}},
    "sequence-parallel": {"parallelism": {"sequence-parallel": True}},
    "pipeline-parallel": {"parallelism": {"pipeline-parallel": 2}},
    "expert-parallel": {"parallelism": {"expert-parallel": 2}},
    "context-parallel": {"parallelism": {"context-parallel": 2}},
    "packed-sequences": {"runtime": {"packed-sequences": True}},
    "inference": {"runtime": {"inference": True}},
}


def test_every_capability_is_held_against_a_setting() -> None:
    assert set(ASKED) == set(CAPABILITIES)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_setting_that_a_chosen_seam_does_not_support_is_refused(capability: str) -> None:
    able = make_seam()
    unable = make_seam(supports=[other for other in CAPABILITIES if other != capability])
    asked = recipe("MK", **K, **ASKED[capability])
    plan(asked, environment(able))
    fault = only(reasons(asked, environment(unable)), Unsupported)
    assert fault.key == capability
    assert "acme-kda 1.0 (owner @acme/layers)" in fault.asked


def test_what_is_not_listed_is_not_supported() -> None:
    everything = {
        "parallelism": {name: True if name == "sequence-parallel" else 2 for name in ASKED}
    }
    for name in ("packed-sequences", "inference"):
        del everything["parallelism"][name]
    everything["runtime"] = {"packed-sequences": True, "inference": True}
    found = reasons(recipe("MK", **K, **everything), environment(make_seam(supports=[])))
    assert {fault.key for fault in found} == set(CAPABILITIES)


def test_a_setting_is_held_against_chosen_seams_only() -> None:
    plan(recipe("M", **ASKED["inference"]), environment(make_seam(supports=[])))


def test_stages_in_the_pattern_are_pipeline_parallelism() -> None:
    found = reasons(recipe("MK|MK", **K), environment(make_seam(supports=[])))
    assert only(found, Unsupported).key == "pipeline-parallel"


@pytest.mark.parametrize(
    ("pattern", "size", "legal"),
    [("MMMM", 2, True), ("MMM", 2, False), ("M|M|M", 3, True), ("M|M|M", 2, False),
     ("M|M|M|M", 2, True), ("MM|M", 2, True), ("MM", 4, False)],
)  # fmt: skip
def test_stages_or_layers_divide_evenly(pattern: str, size: int, legal: bool) -> None:
    asked = recipe(pattern, parallelism={"pipeline-parallel": size})
    if legal:
        plan(asked, environment())
    else:
        fault = only(reasons(asked, environment()), UpstreamForbids)
        assert fault.key == "parallelism.pipeline-parallel"


def test_a_megatron_without_stages_or_mtp_in_its_patterns_takes_neither() -> None:
    native = surface("0.16.1")
    old = environment(native=NativeSurface(version=native.version, symbols=native.symbols))
    plan(recipe("MM"), old)
    found = reasons(recipe("M|M/M"), old)
    assert [type(fault) for fault in found] == [UpstreamForbids, UpstreamForbids]
    assert ["'|'" in fault.asked for fault in found] == [True, False]


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


@pytest.mark.parametrize(
    ("asked", "kind", "says"),
    [
        (recipe("M/M", **features("ngram")), FeatureInvalid, "MTP suffix"),
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


def test_a_native_setting_that_another_table_decides_is_refused() -> None:
    fault = only(
        reasons(recipe("M", **megatron(num_layers=4)), option_environment(make_seam())),
        UnknownNativeKey,
    )
    assert "model.depth" in fault.found


def test_the_fused_projection_of_native_latent_attention_takes_no_seam() -> None:
    seam = make_seam(slots=["mla_layer"])
    source = MegatronSource(
        origin="a test",
        read=lambda _: b"class TransformerConfig:\n    mla_down_proj_fusion: bool = False\n",
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
        ({"positions": [1, 1], "family": "dsa"}, "another entry makes it 'dsa'"),
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


# --- every reason at once ---------------------------------------------------------------------


def test_every_reason_is_reported_at_once_in_the_order_of_the_layers() -> None:
    asked = recipe(
        "M?RAEDK",
        dialect="nam",
        tokens={"K": "kda", "L": "lightning"},
        families={"moe": "mlp", "gdn": "mla"},
        layers=[{"positions": [99], "family": "dsa"}, {"positions": [1], "family": "mla"}],
        features=[{"family": "mamba"}, {"family": "engram"}],
        parallelism={"pipeline-parallel": 2},
        runtime={"inference": True},
        megatron={"num_layers": 7},
    )
    seams = [
        make_seam("one", "kda"),
        make_seam("two", "kda"),
        make_seam("m", "recurrent", supports=[]),
    ]
    found = reasons(asked, environment(*seams))
    assert [type(fault).__name__ for fault in found if fault.positions] == [
        "UnknownToken",
        "AmbiguousToken",
        "TwoSeams",
    ]
    assert sorted(type(fault).__name__ for fault in found if not fault.positions) == [
        "FeatureInvalid",
        "NoProvider",
        "SpecialisationInvalid",
        "SpecialisationInvalid",
        "UnknownNativeKey",
        "Unsupported",
        "Unsupported",
        "UpstreamForbids",
        "UpstreamForbids",
    ]


def test_a_refusal_is_the_same_text_every_time() -> None:
    asked = recipe("?KR!", dialect="nam", tokens={"K": "kda"})
    said = {
        str(refusal(asked, environment(make_seam(), broken=[broken("x", "kda")]))) for _ in "ab"
    }
    assert len(said) == 1


def test_a_refusal_carries_the_layers_so_that_they_can_be_drawn() -> None:
    assert refusal(recipe("?M", depth=3), environment()).tokens == "?M?"


def test_every_reason_says_what_was_asked_what_was_found_and_what_to_do() -> None:
    asked = recipe("?RK", dialect="nam", tokens={"K": "kda"})
    for reason in reasons(asked, environment(make_seam("a", "kda"), make_seam("b", "kda"))):
        assert reason.asked
        assert reason.found
        assert reason.next
        assert re.match(r"\[SEAM-[A-Z]\d\d\] .+\n", str(reason))
