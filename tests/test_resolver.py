"""Resolution: native first, exactly one seam second, and every reason at once otherwise."""

import datetime
import itertools
import re
from typing import Any

import pytest

from megatron_seams.errors import (
    ExperimentNotNamed,
    ManifestInvalid,
    MegatronMissing,
    NativeContested,
    NativeOption,
    NoProvider,
    OnlyBroken,
    OverrideInvalid,
    TwoSeams,
    WrongMegatron,
)
from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.planning.plan import Custom
from megatron_seams.seams.seam import BrokenSeam
from megatron_seams.upstream.locate import megatron_missing
from megatron_seams.upstream.surface import Native, NativeSurface
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
    refusal,
    surface,
)

K: Table = {"tokens": {"K": "kda"}}
EXPIRES = TODAY + datetime.timedelta(days=30)


def broken(name: str, family: str | None) -> BrokenSeam:
    """A seam whose manifest is at fault; with a family if so much could be read."""
    fault = ManifestInvalid(asked="a manifest", found=f"fault of {name}", next="correct it")
    manifest = make_seam(name, family).manifest if family else None
    return BrokenSeam(
        name=name, distribution=f"acme-{name}", version="3.1", faults=(fault,), manifest=manifest
    )


# --- native first -----------------------------------------------------------------------------


def test_native_builds_what_it_has() -> None:
    made = plan(recipe("MG*-E", depth=7), environment())
    assert [layer.provider.label for layer in made.layers] == [f"native {it}" for it in "MG*-EMG"]
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
        "native M",
        "seam kda on M",
        "native M",
        "seam kda on M",
        "native M",
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


#: The next step for a seam whose range excludes the Megatron.
ANOTHER = "install a release of "
FOR_THIS = " for megatron-core 0.19.2, or ask @acme/layers"


def test_a_pin_to_a_seam_for_another_megatron_says_what_is_wrong_with_that_one() -> None:
    where = environment(
        make_seam("aged", "kda", requires="<0.10"), make_seam("stale", "kda", requires="<0.18")
    )
    asked = recipe("K", policy={"pin": {"kda": "stale"}}, **K)
    fault = only(reasons(asked, where), OnlyBroken)
    assert "[SEAM-D08]" in fault.found
    assert "<0.18" in fault.found
    assert "aged" not in fault.found
    assert fault.next == f"{ANOTHER}acme-stale{FOR_THIS}, or correct [policy.pin]"


def test_a_pin_to_a_broken_seam_says_what_is_broken_and_takes_no_other() -> None:
    where = environment(make_seam("fast", "kda"), broken=[broken("slow", "kda")])
    asked = recipe("K", policy={"pin": {"kda": "slow"}}, **K)
    fault = only(reasons(asked, where), OnlyBroken)
    assert "fault of slow" in fault.found


def test_the_order_in_which_seams_are_found_changes_nothing() -> None:
    seams = [make_seam(name, "kda") for name in "abc"]
    texts = {
        str(refusal(recipe("KM", **K), environment(*order)))
        for order in itertools.permutations(seams)
    }
    assert len(texts) == 1


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
    # No manifest can claim such a family.
    fault = only(reasons(recipe("M", families={"mamba": "Mamba 3"}), environment()), NoProvider)
    assert fault.next == "correct the name: a family is named like [a-z][a-z0-9_]*"


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
    # To reinstall it would change nothing.
    assert fault.next == f"{ANOTHER}acme-kda{FOR_THIS}"
    both = environment(seam, broken=[broken("other", "kda")])
    assert only(reasons(recipe("K", **K), both), OnlyBroken).next.startswith("repair")


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
    bare = environment(make_seam(), native=NativeSurface(), faults=[megatron_missing()])
    found = reasons(recipe("MK", **K), bare)
    # One cause, with the layers that Megatron would build; no plugin is missing.
    assert [type(fault) for fault in found] == [MegatronMissing]
    assert found[0].positions == (1,)


# --- experiments ------------------------------------------------------------------------------


def test_an_experiment_is_not_chosen_unless_the_recipe_names_it() -> None:
    seam = make_seam(status="experiment")
    fault = only(reasons(recipe("K", **K), environment(seam)), ExperimentNotNamed)
    assert 'experiments = ["kda"]' in fault.next
    made = plan(recipe("K", policy={"experiments": ["kda"]}, **K), environment(seam))
    assert made.layers[0].provider.label == "seam kda (experiment) on M"


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


# --- the layers of a plan ---------------------------------------------------------------------


def test_the_layers_are_a_sequence_whichever_way_they_are_asked_for() -> None:
    asked = recipe("MK|*E|M", layers=[{"positions": [3, 5], "family": "gdn"}], **K)
    layers = plan(asked, environment(make_seam())).layers
    assert [(layer.position, layer.token, layer.stage) for layer in layers] == [
        (1, "M", 0),
        (2, "K", 0),
        (3, "*", 1),
        (4, "E", 1),
        (5, "M", 2),
    ]
    assert [layer.family for layer in layers] == ["mamba", "kda", "gdn", "moe", "gdn"]


def test_a_token_needs_no_provider_where_its_layers_are_all_of_another_family() -> None:
    for pattern in ("KM", "KM/M"):
        asked = recipe(pattern, layers=[{"positions": [1], "family": "moe"}], **K)
        assert [it.provider.symbol for it in plan(asked, environment()).layers] == ["E", "M"]
        assert [it.family for it in plan(asked, environment()).layers] == ["moe", "mamba"]


def test_plans_of_the_same_recipe_are_equal() -> None:
    where = environment(make_seam())
    assert plan(recipe("MK", **K), where) == plan(recipe("MK", **K), where)
    assert plan(recipe("MK", **K), where).layers != plan(recipe("KM", **K), where).layers


# --- upstream ships the family as an option ---------------------------------------------------


def test_a_family_that_megatron_ships_as_an_option_is_refused_with_the_option() -> None:
    seam = make_seam(fallback="native", accepts={"config-field": "engram_layers"})
    fault = only(reasons(recipe("K", **K), option_environment(seam)), NativeOption)
    assert "engram_layers" in fault.found
    later = make_seam(fallback="native", accepts={"config-field": "not_yet"})
    assert plan(recipe("K", **K), option_environment(later)).seams == (later,)


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
    texts = {
        str(refusal(asked, environment(make_seam(), broken=[broken("x", "kda")]))) for _ in "ab"
    }
    assert len(texts) == 1


def test_a_refusal_carries_the_layers_so_that_they_can_be_drawn() -> None:
    assert refusal(recipe("?M", depth=3), environment()).tokens == "?M?"


def test_every_reason_says_what_was_asked_what_was_found_and_what_to_do() -> None:
    asked = recipe("?RK", dialect="nam", tokens={"K": "kda"})
    for reason in reasons(asked, environment(make_seam("a", "kda"), make_seam("b", "kda"))):
        assert reason.asked
        assert reason.found
        assert reason.next
        assert re.match(r"\[SEAM-[A-Z]\d\d\] .+\n", str(reason))
