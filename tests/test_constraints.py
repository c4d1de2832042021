"""Constraints on plans: upstream's own rules, carriers, MTP, and the settings of each seam."""

from typing import Any

import attrs
import pytest

from megatron_seams.errors import (
    NoCarrier,
    NoProvider,
    SeamInMtp,
    UnknownToken,
    Unsupported,
    UpstreamForbids,
)
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.recipes.pipeline import FIRST, LAST, one_rank
from megatron_seams.seams.manifest import CAPABILITIES
from megatron_seams.upstream.source import MegatronSource
from megatron_seams.upstream.surface import NativeSurface
from seam_support import (
    Table,
    environment,
    make_seam,
    only,
    plan,
    reasons,
    recipe,
    surface,
)

K: Table = {"tokens": {"K": "kda"}}

# --- what upstream forbids --------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["*D", "*+", "M*|MD", "*|M|+", "M/*D", "D/M+*/M+*"])
def test_attention_beside_latent_or_sparse_is_forbidden_in_one_part_of_a_pattern(
    pattern: str,
) -> None:
    fault = only(reasons(recipe(pattern), environment()), UpstreamForbids)
    assert "Not supported to have both" in fault.found


@pytest.mark.parametrize("pattern", ["D+", "MD|M+", "M*|M*/*", "+D/+"])
def test_what_upstream_allows_is_not_forbidden(pattern: str) -> None:
    plan(recipe(pattern), environment())


@pytest.mark.parametrize("pattern", ["DEDE/*E", "M*M*/MD/MD", "MD/*", "M+/M*/M*"])
def test_decoder_and_mtp_part_are_each_checked_by_itself(pattern: str) -> None:
    plan(recipe(pattern), environment())


def test_a_rule_over_both_parts_is_applied_to_both_together() -> None:
    apart = surface()
    (rule,) = apart.exclusions
    whole = attrs.evolve(apart, exclusions=(attrs.evolve(rule, whole=True),))
    asked = recipe("DE/*E")
    plan(asked, environment(native=apart))
    fault = only(reasons(asked, environment(native=whole)), UpstreamForbids)
    assert "an MTP part with ATTENTION, MOE" in fault.asked


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
        ("+M/D/D", "attention_layer", "*M/D/D"),
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
    # Where it is the recipe that makes a native token the seam's, the message says so.
    asked = recipe("MM/M", families={"mamba": "kda"})
    fault = only(reasons(asked, environment(make_seam())), SeamInMtp)
    assert fault.found.endswith("the recipe specialises mamba as kda, there too")


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
     ("M|M|M|M", 2, True), ("MM|M", 2, True), ("MM", 4, False), ("||M", 3, True)],
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


# --- uneven pipelines -------------------------------------------------------------------------


def cutting() -> Environment:
    """A Megatron whose configuration has the two sizes."""
    fields = "".join(f"    {key}: int | None = None\n" for key in (FIRST, LAST))
    text = b"@dataclass\nclass TransformerConfig:\n" + fields.encode()
    source = MegatronSource(
        origin="a test",
        read=lambda path: text if path.endswith("transformer_config.py") else None,
    )
    return attrs.evolve(environment(), source=source)


def uneven(pattern: str, ranks: int, *, first: Any = None, last: Any = None) -> Any:
    sizes = {FIRST: first, LAST: last}
    return recipe(
        pattern,
        parallelism={"pipeline-parallel": ranks},
        megatron={key: size for key, size in sizes.items() if size is not None},
    )


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        (uneven("M" * 17, 4, first=3, last=4), (3, 5, 5, 4)),
        (uneven("M" * 17, 3, first=3), (3, 7, 7)),
        (uneven("M" * 17, 3, last=1), (8, 8, 1)),
        (uneven("M" * 17, 2, first=3, last=14), (3, 14)),
        (uneven("M" * 17, 1, first=17), (17,)),
        # More than there are, and yet each layer on one stage: upstream builds just that.
        (uneven("M" * 8, 2, first=9), (8, 0)),
    ],
)
def test_first_and_last_stage_are_taken_off_and_the_rest_is_cut_evenly(
    asked: Any, sizes: tuple[int, ...]
) -> None:
    made = plan(asked, cutting())
    assert made.pipeline.sizes == sizes
    assert [layer.stage for layer in made.layers] == list(made.pipeline.stages)
    assert lowered_pattern(made) == "M" * len(made.layers)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (uneven("M" * 17, 4, first=3), "14 of 17 layers are left for 3 stages"),
        (uneven("M" * 17, 2, first=3, last=4), "10 of 17 layers are left for 0 stages"),
        (uneven("M" * 17, 3, first=17), "0 of 17 layers are left for 2 stages"),
        (uneven("M" * 17, 1, first=3), "14 of 17 layers are left for 0 stages"),
        (uneven("M" * 8, 4, first=7, last=3), "the pattern has 8 layers"),
        (uneven("M" * 8, 2, first=0), "it is not larger than 0"),
        (uneven("M|M", 2, first=1), "the pattern writes its stages itself"),
        (uneven("M|M", 2, last=1), "the pattern writes its stages itself"),
    ],
)
def test_sizes_that_leave_no_even_rest_are_refused_with_their_key(asked: Any, says: str) -> None:
    fault = only(reasons(asked, cutting()), UpstreamForbids)
    assert says in fault.found
    assert fault.key is not None
    assert fault.key.startswith("megatron.num_layers_in_")


def test_stages_that_do_not_divide_say_that_their_ends_may_differ() -> None:
    fault = only(reasons(uneven("M" * 17, 4), environment()), UpstreamForbids)
    assert FIRST in fault.next


def test_under_virtual_stages_each_rank_has_every_so_manieth() -> None:
    asked = recipe("M|MM||M/M", parallelism={"pipeline-parallel": 2})
    made = plan(asked, environment())
    assert (made.pipeline.ranks, made.pipeline.virtual) == (2, 2)
    assert [(layer.stage, layer.rank) for layer in made.layers] == [(0, 0), (1, 1), (1, 1), (3, 1)]
    assert [(layer.stage, layer.rank) for layer in made.mtp] == [(3, 1)]


def test_stages_are_in_the_plan_also_where_the_pattern_writes_none() -> None:
    made = plan(recipe("MMMM/M", parallelism={"pipeline-parallel": 2}), environment())
    assert [layer.stage for layer in (*made.layers, *made.mtp)] == [0, 0, 1, 1, 1]


def test_stages_on_one_rank_are_planned_and_not_launched() -> None:
    made = plan(recipe("M|M|M"), environment())
    assert made.pipeline.ranks == 3
    fault = one_rank(made.parallelism, made.pattern)
    assert fault is not None
    assert "pipeline-parallel is 1" in fault.found
    assert [str(finding) for finding in made.findings] == [str(fault)]
    assert "to 3, or leave out" in fault.next
    four = one_rank(made.parallelism, plan(recipe("M|M|M|M"), environment()).pattern)
    assert four is not None
    assert "to 4 or 2, or leave out" in four.next
    for pattern, ranks in (("M|M|M", 3), ("M|M|M|M", 4), ("M|M|M|M", 2), ("MMM", 1)):
        told = plan(recipe(pattern, parallelism={"pipeline-parallel": ranks}), environment())
        assert told.findings == ()
    assert one_rank(made.parallelism, plan(recipe("MMM"), environment()).pattern) is None
