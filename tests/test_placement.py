"""The placement table: every layer and feature of a model, by global number and by rank."""

import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from megatron_seams.planning.placement import Placed, placement
from megatron_seams.recipes.recipe import Recipe
from megatron_seams.records.plan_json import describe_plan
from seam_support import Table, environment, make_seam, plan, reasons, recipe, registry

#: NAM56R: which attention layers are sparse, by rank, and by number.
RANKS = [1, 2, 3, 5, 6, 7, 9, 10, 11]
NUMBERS = [5, 9, 13, 21, 25, 29, 37, 41, 45]
RIDER = make_seam("rider", "recurrent")
MEMORY = make_seam("memory", "engram", placement="residual")
HASHES = make_seam("hashes", "ngram", placement="embedding")
WHERE = environment(RIDER, MEMORY, HASHES)


def nam56r(**tables: Any) -> Recipe:
    """NAM56R's layers, with Mamba-2 in M."""
    model: Table = {
        "dialect": "nam",
        "depth": 52,
        "tokens": {"-": "mlp"},
        "families": {"attention": "mla"},
        "layers": [{"ranks": RANKS, "of": "attention", "family": "dsa"}],
    }
    return recipe("AEMEAEMEAEMR/A-/A-", **{**model, **tables})


def rows(asked: Recipe) -> dict[tuple[str, str], Placed]:
    return {(row.name, row.at): row for row in placement(plan(asked, WHERE))}


def test_layers_by_rank_are_the_layers_by_number() -> None:
    by_rank = plan(nam56r(), WHERE)
    numbered = [{"positions": NUMBERS, "of": "attention", "family": "dsa"}]
    assert by_rank.layers == plan(nam56r(layers=numbered), WHERE).layers
    assert [it.position for it in by_rank.layers if it.family == "dsa"] == NUMBERS


def test_the_whole_of_nam56r_is_accounted_for_by_number_and_by_rank() -> None:
    memory = {"family": "engram", "ranks": [4, 0], "of": "attention"}
    found = rows(nam56r(features=[memory]))
    decoder = [row for row in found.values() if (row.what, row.at) == ("layers", "decoder")]
    assert sorted(at for row in decoder for at in row.layers) == list(range(1, 53))
    assert {(row.name, row.provider, len(row.layers)) for row in decoder} == {
        ("mla", "native", 4),
        ("dsa", "native", 9),
        ("moe", "native", 22),
        ("mamba", "native", 13),
        ("recurrent", "seam rider", 4),
    }
    assert found["dsa", "decoder"].ranks == {"attention": tuple(RANKS)}
    assert found["mla", "decoder"].ranks == {"attention": (0, 4, 8, 12)}
    assert found["recurrent", "decoder"].owner == "@acme/layers"
    assert found["mla", "mtp"].mtp == (1,)
    assert found["mlp", "mtp"].mtp == (2,)
    assert found["mtp", "mtp"].why == "2 depths of A-, by the pattern"
    assert found["dsa_indexer", "decoder"].layers == tuple(NUMBERS)
    assert found["engram", "residual"].layers == (1, 17)
    assert found["engram", "residual"].ranks == {"attention": (0, 4)}


@pytest.mark.parametrize(
    ("settings", "name", "layers", "why"),
    [
        (
            {"moe_shared_expert_intermediate_size": 64},
            "shared_experts",
            (2, 4),
            "moe_shared_expert_intermediate_size = 64",
        ),
        (
            {"enable_mhc_connections": True, "mhc_num_residual_streams": 4},
            "hyper_connections",
            (1, 2, 3, 4),
            "enable_mhc_connections = True, mhc_num_residual_streams = 4",
        ),
        ({"moe_shared_expert_intermediate_size": 0, "enable_mhc_connections": False}, "", (), ""),
    ],
)
def test_native_features_are_those_that_the_settings_ask_for(
    settings: Table, name: str, layers: tuple[int, ...], why: str
) -> None:
    made = attrs.evolve(plan(recipe("MEME"), WHERE), megatron=settings)
    found = [row for row in placement(made) if row.what == "feature"]
    expected = [(name, layers, why, "native")] if name else []
    assert [(row.name, row.layers, row.why, row.provider) for row in found] == expected


def test_a_seam_s_sparse_attention_has_no_native_indexer() -> None:
    made = plan(recipe("KM", tokens={"K": "kda"}), environment(make_seam()))
    assert [row.what for row in placement(made)] == ["layers", "layers"]


def test_the_table_is_in_the_plan_s_json() -> None:
    described = describe_plan(plan(nam56r(), WHERE))["placement"]
    dsa = next(row for row in described if (row["name"], row["what"]) == ("dsa", "layers"))
    assert (dsa["layers"], dsa["ranks"]) == (NUMBERS, {"attention": RANKS})


def test_resolve_prints_ranks_where_layers_of_one_family_differ(tmp_path: Path) -> None:
    file = tmp_path / "model.toml"
    model = 'schema = 1\n[model]\nname = "m"\npattern = "MEME/-"\n'
    file.write_text(model)
    assert "rank" not in registry("resolve", file, code=0).stdout
    file.write_text(model + '[[layers]]\nof = "moe"\nranks = [1]\nfamily = "mlp"\n')
    shown = registry("resolve", file, code=0).stdout.splitlines()
    below = [line.strip() for line in shown if line.startswith("    layer")]
    assert below == [
        "layers 1, 3; mamba ranks 0-1",
        "layer 2; moe rank 0",
        "layer 4; moe rank 1",
        "layer 1",  # of an MTP depth, whose layers no rank counts
        "layer 1 of each MTP depth, stage 0",
    ]
    each = registry("resolve", file, "--layers", code=0).stdout.splitlines()
    cells = [re.split(r"  +", line)[:4] for line in each if "native" in line and "." not in line]
    assert cells == [
        ["1", "mamba 0", "M", "mamba"],
        ["2", "moe 0", "E", "moe"],
        ["3", "mamba 1", "M", "mamba"],
        ["4", "moe 1", "E", "mlp"],
        ["MTP 1", "-", "-", "mlp"],
        ["-", "-", "-", "mtp"],
    ]


ASKED: Table = {"family": "dsa", "of": "attention"}
MEMORY_AT: Table = {"family": "engram", "of": "attention", "ranks": [0]}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({**ASKED, "ranks": [13]}, "the layers of attention have ranks 0 to 12, and no 13"),
        ({**ASKED, "ranks": [-1]}, "and no -1"),
        ({**ASKED, "ranks": [1, 1]}, "ranks has a number twice"),
        ({**ASKED, "ranks": [0], "of": "gdn"}, "no token of the pattern spells gdn"),
        # The family is the token's, whatever the recipe makes of it.
        ({**ASKED, "ranks": [0], "of": "mla"}, "no token of the pattern spells mla"),
    ],
)
def test_ranks_that_there_are_not_are_refused(entry: Table, says: str) -> None:
    (fault,) = reasons(nam56r(layers=[entry]), WHERE)
    assert fault.key == "layers[0]"
    assert says in fault.found
    feature = {**entry, "family": "engram"}
    (fault,) = reasons(nam56r(features=[feature]), WHERE)
    assert says in fault.found


def test_ranks_are_of_the_decoder_s_layers_and_not_of_the_mtp_part_s() -> None:
    for tables in ({"layers": [{**ASKED, "ranks": [0]}]}, {"features": [MEMORY_AT]}):
        (fault,) = reasons(recipe("MEME/*", **tables), WHERE)
        assert fault.found == (
            "only the MTP part spells attention; ranks count the decoder's layers: mamba, moe"
        )


def test_layers_of_the_mtp_part_say_why_they_are_of_another_family() -> None:
    made = plan(recipe("MEME/-", families={"mlp": "moe"}), WHERE)
    (row,) = (it for it in placement(made) if (it.what, it.at) == ("layers", "mtp"))
    assert row.why == ("the recipe specialises mlp as moe; an MTP depth is built from native parts")


def test_a_number_that_one_entry_has_twice_is_no_other_entry_s() -> None:
    entry = {"positions": [5, 5], "family": "dsa"}
    (fault,) = reasons(nam56r(layers=[entry]), WHERE)
    assert fault.found == "positions has a number twice: [5, 5]"


@pytest.mark.parametrize(
    ("entry", "advice"),
    [
        ({"of": "attention", "ranks": [0]}, "leave out ranks and of"),
        ({"of": "attention", "layers": [1]}, "leave out layers and of"),
        ({"layers": [1]}, "leave out layers"),
        ({"of": "attention"}, "leave out of"),
    ],
)
def test_a_feature_at_the_embedding_names_no_layers_in_any_way(entry: Table, advice: str) -> None:
    (fault,) = reasons(nam56r(features=[{"family": "ngram", **entry}]), WHERE)
    assert "which no layer is" in fault.found
    assert fault.next == advice


@pytest.mark.parametrize("of", [None, "moe"])
def test_the_layer_that_a_message_names_can_be_named(of: str | None) -> None:
    asked: Table = {"family": "engram", **({"of": of} if of else {})}
    (fault,) = reasons(nam56r(features=[asked]), WHERE)
    first = 1 if of is None else 2
    assert fault.next == f"name them: layers = [{first}]"
    plan(nam56r(features=[{**asked, "layers": [first]}]), WHERE)


def test_a_layer_named_by_rank_and_by_number_is_named_twice() -> None:
    entries = [{**ASKED, "ranks": [1]}, {"positions": [5], "family": "gdn"}]
    (fault,) = reasons(nam56r(layers=entries), WHERE)
    assert fault.positions == (5,)
    assert "another entry makes it 'dsa'" in fault.found


def test_layers_of_a_feature_are_held_to_the_family_that_it_names() -> None:
    memory = {"family": "engram", "layers": [1, 2], "of": "attention"}
    (fault,) = reasons(nam56r(features=[memory]), WHERE)
    assert "the pattern spells moe at 2" in fault.found


def test_a_layer_that_no_dialect_spells_is_of_no_family() -> None:
    of: Table = {"of": "attention"}
    asked = recipe(
        "*XE",
        layers=[{**of, "positions": [2], "family": "mla"}],
        features=[{**of, "layers": [2], "family": "engram"}],
    )
    said = [fault.found for fault in reasons(asked, WHERE) if "attention;" in fault.found]
    assert len(said) == 2
    assert all("the pattern spells no family" in found for found in said)


@pytest.mark.parametrize(
    ("table", "entry", "says"),
    [
        ("layers", {"family": "dsa"}, "exactly one of positions"),
        ("layers", {"family": "dsa", "positions": [1], "ranks": [0], "of": "x"}, "exactly one of"),
        ("layers", {"family": "dsa", "ranks": [0]}, "name it"),
        ("layers", {"family": "dsa", "ranks": [], "of": "x"}, "at least one number"),
        ("layers", {"family": "dsa", "positions": []}, "at least one number"),
        ("features", {"family": "engram", "ranks": [0]}, "name it"),
        ("features", {"family": "engram", "ranks": [0], "of": "x", "layers": [1]}, "keep one"),
    ],
)
def test_an_entry_names_its_layers_in_one_way(table: str, entry: Table, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        nam56r(**{table: [entry]})
