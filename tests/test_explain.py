"""`registry explain`: tokens, families, seams and upstream's constants, for people and programs."""

import json
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
from click.testing import CliRunner

import screens
from megatron_seams.cli import cli
from megatron_seams.errors import ExperimentNotNamed, UnknownToken
from megatron_seams.governance.explanation import explain
from megatron_seams.planning.environment import Environment
from megatron_seams.upstream.surface import NativeSymbol
from seam_support import environment, make_seam, recipe, surface

WORLD = screens.world("0.19.2")


def families(name: str, where: Environment = WORLD) -> list[str]:
    return [story.family.name for story in explain(name, where).families]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("mla", ["mla"]),
        ("latent", ["mla"]),  # a seam
        ("one", ["fast"]),
        ("MLA", ["mla"]),  # a constant of upstream's
        ("DS_ATTENTION", ["dsa"]),
        ("D", ["dsa"]),
        ("A", ["attention"]),
        ("kda", ["kda"]),  # a seam and a family of one name
        ("gated_memory", []),  # broken: no family is known
    ],
)
def test_a_name_is_explained_whatever_it_names(name: str, meant: list[str]) -> None:
    assert families(name) == meant


def test_a_token_is_explained_under_a_recipes_choices() -> None:
    asked = recipe("MK", tokens={"K": "attention"}, families={"attention": "mla"})
    found = explain("K", WORLD, asked)
    assert [(it.dialect, it.family, it.specialised) for it in found.spellings] == [
        ("megatron", "attention", "mla")
    ]
    assert [story.family.name for story in found.families] == ["mla"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("recurent", "recurrent"),
        ("laten", "latent"),
        ("ds_attention", "DS_ATTENTION"),
        ("Mamba", "mamba"),
        ("gated-memory", "gated_memory"),
    ],
)
def test_a_name_that_is_nearly_one_is_refused_with_it(name: str, near: str) -> None:
    with pytest.raises(UnknownToken) as refused:
        explain(name, WORLD)
    assert refused.value.next == f"did you mean {near}?"
    assert explain(near, WORLD)


@pytest.mark.parametrize("name", ["Q", "zzz", "", "m" * 5000])
def test_a_name_that_nothing_has_is_refused_with_all_that_there_is(name: str) -> None:
    with pytest.raises(UnknownToken) as refused:
        explain(name, WORLD)
    assert "mean" not in refused.value.next
    assert "attention" in refused.value.found


#: Upstream's symbol of no family: what a manifest may name as its own equivalent.
CSA = NativeSymbol(constant="CSA", symbol="C", slot="csa_layer", keywords=("config",))


def test_an_unmapped_symbol_is_explained_and_the_seam_that_claims_it_told() -> None:
    native = surface()
    native = attrs.evolve(native, symbols=(*native.symbols, CSA))
    bare = explain("CSA", environment(native=native))
    assert bare.symbol == CSA
    assert bare.families == ()
    claims = {"fallback": "native", "accepts": {"symbol-name": "CSA"}}
    trial = environment(make_seam("csa", "csa", status="experiment", **claims), native=native)
    for name in ("C", "CSA", "csa"):
        (story,) = explain(name, trial).families
        # One story for both commands: the symbol is there, and the trial's word is not taken.
        assert isinstance(story.choice, ExperimentNotNamed)
        assert "native 'C'" in story.choice.found
        assert "has no csa" not in story.choice.found
        assert story.choice.next == 'accept it in the recipe: [policy] experiments = ["csa"]'
    accepted = recipe("MM", policy={"experiments": ["csa"]})
    (story,) = explain("csa", trial, accepted).families
    assert getattr(story.choice, "provider", None) == CSA


def test_the_json_is_as_published(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema: Any = json.loads((repository / "docs/schema/explain.schema.json").read_text())
    monkeypatch.setattr("megatron_seams.cli.explain.read_environment", lambda _: WORLD)
    outcomes = set()
    for name in ("D", "mla", "latent", "MLA", "lightning", "fast", "gated_memory", "Q", "nothing"):
        done = CliRunner().invoke(cli, ["explain", name, "--json"], prog_name="registry")
        found = json.loads(done.stdout)
        jsonschema.validate(found, schema)
        outcomes.add(found["outcome"])
        assert done.exit_code == (2 if found["outcome"] == "refused" else 0)
    assert outcomes == {"explanation", "refused"}
