"""The recipes that come with the project, each with the outcome that it should have."""

import csv
import re
from collections import Counter
from pathlib import Path

import attrs
import pytest

from megatron_seams.base.structure import structure
from megatron_seams.errors import NoProvider
from megatron_seams.planning.environment import Environment, read_environment
from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.planning.placement import placement
from megatron_seams.planning.plan import Custom
from megatron_seams.recipes.recipe import Recipe, load_recipe
from megatron_seams.upstream.surface import Native, NativeSurface
from seam_support import environment, plan, recipe, refusal

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
#: Recipes with layers that no Megatron builds; every other one is native from end to end.
CUSTOM = {"nam56r", "nam56r-mamba2", "nam-mini"}
#: NAM56R's thirteen attention blocks, ranks 0 to 12, and the ranks that run sparse attention.
ATTENTION = tuple(range(1, 53, 4))
SPARSE_RANKS = (1, 2, 3, 5, 6, 7, 9, 10, 11)
MAMBA = tuple(range(3, 53, 4))
RECURRENT = (12, 24, 36, 48)


def named(name: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / f"{name}.toml")


def skip_unless_installed(name: str, here: Environment) -> None:
    wanted = set(named(name).install.values())
    if not wanted <= {seam.distribution for seam in here.discovery.seams}:
        pytest.skip("a seam that the recipe asks for has been deleted")


@pytest.fixture(scope="module")
def here() -> Environment:
    """The environment that the tests run in: the installed Megatron and the installed seams."""
    found = read_environment()
    assert found.surface.version is not None
    assert found.surface.version.release[:2] == (0, 19)
    return found


@pytest.fixture(scope="module")
def without_seams(here: Environment) -> Environment:
    """The installed Megatron alone, with everything that its source says."""
    bare = environment(native=here.surface)
    return Environment(surface=here.surface, discovery=bare.discovery, source=here.source)


def test_there_are_recipes_and_the_tests_below_speak_of_each() -> None:
    assert len(RECIPES) >= 10
    assert {path.stem for path in RECIPES} >= CUSTOM


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.stem not in CUSTOM], ids=lambda path: path.stem
)
def test_a_published_model_is_native_from_end_to_end(
    path: Path, without_seams: Environment
) -> None:
    asked = load_recipe(path)
    made = plan(asked, without_seams)
    assert all(isinstance(layer.provider, Native) for layer in (*made.layers, *made.mtp))
    assert made.seams == ()
    assert made.findings == ()
    assert len(made.layers) == made.pattern.depth
    if asked.model.depth is not None:
        assert made.pattern.depth == asked.model.depth


def test_nam56r_with_mamba_2_is_native_but_for_its_four_recurrent_layers(
    here: Environment,
) -> None:
    made = plan(named("nam56r-mamba2"), here)
    assert Counter(layer.family for layer in made.layers) == {
        "dsa": 9,
        "mla": 4,
        "moe": 22,
        "mamba": 13,
        "recurrent": 4,
    }
    custom = made.custom_layers()
    assert tuple(custom) == RECURRENT
    for layer in made.layers:
        if layer.position in RECURRENT:
            assert isinstance(layer.provider, Custom)
            assert (layer.token, layer.family) == ("R", "recurrent")
            assert layer.provider.seam.owner.startswith("@")
            assert layer.provider.seam.distribution == named("nam56r-mamba2").install["recurrent"]
        else:
            assert isinstance(layer.provider, Native)


def test_nam56r_runs_sparse_attention_at_the_ranks_that_were_published(here: Environment) -> None:
    families = [layer.family for layer in plan(named("nam56r-mamba2"), here).layers]
    assert tuple(i for i, f in enumerate(families, start=1) if f in ("mla", "dsa")) == ATTENTION
    ranks = tuple(rank for rank, at in enumerate(ATTENTION) if families[at - 1] == "dsa")
    assert ranks == SPARSE_RANKS


def test_nam56r_without_the_recurrent_seam_says_what_is_missing_where_and_what_to_install(
    without_seams: Environment,
) -> None:
    (fault,) = refusal(named("nam56r-mamba2"), without_seams).reasons
    assert isinstance(fault, NoProvider)
    assert fault.positions == RECURRENT
    assert fault.subject == "recurrent"
    text = str(fault)
    assert "'R'" in text
    assert "12, 24, 36, 48" in text
    assert "recurrent" in text
    assert f"pip install {named('nam56r-mamba2').install['recurrent']}" in text


def test_nam56r_as_published_is_planned_whole(here: Environment) -> None:
    skip_unless_installed("nam56r", here)
    made = plan(named("nam56r"), here)
    assert Counter(layer.family for layer in made.layers) == {
        "dsa": 9,
        "mla": 4,
        "moe": 22,
        "mamba3": 13,
        "recurrent": 4,
    }
    assert tuple(made.custom_layers()) == tuple(sorted((*MAMBA, *RECURRENT)))
    assert [layer.family for layer in made.mtp] == ["mla", "mlp"]
    assert made.pattern.mtp_depths == 2
    assert [(it.family, it.placement) for it in made.features] == [("ngram", "embedding")]
    wanted = set(named("nam56r").install.values())
    assert {seam.distribution for seam in made.seams} == wanted


def test_the_placement_table_accounts_for_every_layer_and_feature_of_nam56r(
    here: Environment,
) -> None:
    skip_unless_installed("nam56r", here)
    table = placement(plan(named("nam56r"), here))
    layers = [row for row in table if (row.what, row.at) == ("layers", "decoder")]
    assert sorted(at for row in layers for at in row.layers) == list(range(1, 53))
    rows = {row.name: row for row in table if row.at != "mtp"}
    assert rows["dsa"].ranks == {"attention": SPARSE_RANKS}
    assert rows["dsa_indexer"].ranks == {"attention": SPARSE_RANKS}
    assert rows["shared_experts"].layers == rows["moe"].layers
    assert len(rows["moe"].layers) == 22
    features = {row.name for row in table if row.what == "feature"}
    assert {"mtp", "dsa_indexer", "shared_experts"} <= features
    assert {row.name for row in table if row.at == "mtp"} == {"mla", "mlp", "mtp"}


def test_nam56r_has_the_memory_at_layers_where_its_comments_are_taken_away(
    here: Environment, tmp_path: Path
) -> None:
    skip_unless_installed("nam56r", here)
    text = (ROOT / "recipes" / "nam56r.toml").read_text()
    file = tmp_path / "nam56r-engram.toml"
    # Signs right before the text are those of settings; a comment's words have a space between.
    text, lines = re.subn(r"^#(?=\S)", "", text, flags=re.MULTILINE)
    file.write_text(text)
    assert lines == 7
    asked = load_recipe(file)
    made = plan(asked, here)
    assert made.layers == plan(named("nam56r"), here).layers
    memory = next(row for row in placement(made) if row.name == "engram")
    assert (memory.at, memory.layers, memory.ranks) == ("residual", (5, 29), {"attention": (1, 7)})
    assert asked.seams["engram"] == {"gate": "signed-sqrt", "bias": True}
    assert [it.family for it in made.features] == ["ngram", "engram"]


def test_nam56r_as_published_takes_no_mamba_2_where_there_is_no_seam_for_mamba_3(
    here: Environment, without_seams: Environment
) -> None:
    found = refusal(named("nam56r"), without_seams).reasons
    assert [(fault.subject, fault.positions) for fault in found] == [
        ("ngram", ()),
        ("mamba3", MAMBA),
        ("recurrent", RECURRENT),
    ]
    left = tuple(seam for seam in here.discovery.seams if seam.family != "mamba3")
    others = attrs.evolve(here, discovery=attrs.evolve(here.discovery, seams=left))
    fault = next(it for it in refusal(named("nam56r"), others).reasons if it.subject == "mamba3")
    assert isinstance(fault, NoProvider)
    assert fault.positions == MAMBA
    assert "'M'" in fault.asked
    assert "is not taken in its place" in fault.found
    assert fault.next == f"pip install {named('nam56r').install['mamba3']}"


def test_the_small_model_has_the_order_of_the_large_one() -> None:
    large, small = named("nam56r").model, named("nam-mini").model
    decoder, *mtp = large.pattern.split("/")
    assert mtp == ["AF", "AF"]
    assert small.pattern == decoder
    assert small.dialect == large.dialect


def test_the_small_model_is_planned_with_its_feature(here: Environment) -> None:
    skip_unless_installed("nam-mini", here)
    made = plan(named("nam-mini"), here)
    families = {"mla": 3, "moe": 5, "mamba3": 3, "recurrent": 1}
    assert Counter(layer.family for layer in made.layers) == families
    assert [(it.family, it.placement) for it in made.features] == [("ngram", "embedding")]
    assert {seam.distribution for seam in made.seams} == set(named("nam-mini").install.values())


# --- the published patterns -------------------------------------------------------------------


def published() -> list[dict[str, str]]:
    with (ROOT / "tests" / "data" / "patterns.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


NATIVE_PATTERNS = [row for row in published() if row["dialect"] == "megatron"]


def test_the_table_of_patterns_is_whole() -> None:
    assert len(published()) == 11
    assert len(NATIVE_PATTERNS) == 10


@pytest.mark.parametrize("row", NATIVE_PATTERNS, ids=lambda row: f"{row['model']} {row['depth']}")
def test_a_published_pattern_is_native_at_its_stated_depth(
    row: dict[str, str], without_seams: Environment
) -> None:
    depth = int(row["depth"])
    made = plan(recipe(row["pattern"], depth=depth), without_seams)
    assert len(made.layers) == depth
    assert all(isinstance(layer.provider, Native) for layer in (*made.layers, *made.mtp))
    # The plan asks Megatron for exactly what the model's own launcher asks it for.
    assert lowered_pattern(made) == row["pattern"]


def test_every_published_model_in_the_table_that_has_a_recipe_agrees_with_it() -> None:
    patterns = {row["pattern"] for row in published()}
    for path in RECIPES:
        if path.stem not in {"nam-mini"}:
            model = load_recipe(path).model
            # The table has NAM56R's decoder alone.
            listed = model.pattern.partition("/")[0] if model.dialect == "nam" else model.pattern
            assert listed in patterns, path.name


def test_a_seam_adds_nothing_to_a_model_that_needs_none(
    here: Environment, without_seams: Environment
) -> None:
    asked = named("nemotron-h-8b")
    assert plan(asked, here).layers == plan(asked, without_seams).layers


def test_nothing_is_native_where_the_surface_is_empty() -> None:
    bare = environment(native=NativeSurface())
    found = refusal(recipe(NATIVE_PATTERNS[0]["pattern"]), bare)
    assert all(isinstance(reason, NoProvider) for reason in found.reasons)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("learning-rate", rate) for rate in (-1.0, 1e31, float("inf"), float("nan"))),
        *(("seed", seed) for seed in (2**63, -(2**63))),
    ],
)
def test_a_toy_run_that_torch_does_not_take_is_refused_by_its_key(key: str, value: float) -> None:
    model = {"name": "x", "pattern": "M"}
    found, (fault,) = structure(Recipe, {"schema": 1, "model": model, "smoke": {key: value}})
    assert found is None
    assert fault.key == f"smoke.{key}"
    assert fault.message.startswith("expected a number from ")
