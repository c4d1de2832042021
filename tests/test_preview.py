"""`registry preview`: what another Megatron changes, on published wheels and on damaged ones."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import megatron_releases
from megatron_seams.governance.preview import Preview, preview
from megatron_seams.planning.environment import Environment
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.locate import open_megatron
from megatron_seams.upstream.surface import read_surface
from seam_support import environment, make_seam, recipe, registry, toml

pytestmark = pytest.mark.published

STACK = "megatron/core/models/hybrid/hybrid_block.py"
LATENT = make_seam(
    "latent", "mla", fallback="native", accepts={"symbol-name": "MLA"}, slots=["attention_layer"]
)
RIDER = make_seam("rider", "recurrent", slots=["mamba_layer"])


def of(where: Path, *seams: Seam) -> Environment:
    return environment(*seams, native=read_surface(open_megatron(where)))


def of_release(release: str, *seams: Seam) -> Environment:
    return of(megatron_releases.wheel(release), *seams)


def states(found: Preview) -> dict[str, str]:
    return {change.seam.name: change.state for change in found.seams}


def edited(tmp_path: Path, changes: Mapping[str, tuple[str, str]]) -> Path:
    """The 0.19 wheel with files changed; a change that finds nothing is a stale test."""
    made = tmp_path / "megatron_core-0.19.2-edited.whl"
    with (
        zipfile.ZipFile(megatron_releases.wheel("0.19")) as source,
        zipfile.ZipFile(made, "w") as target,
    ):
        for name in source.namelist():
            data = source.read(name)
            if name in changes:
                old, new = (text.encode() for text in changes[name])
                assert old in data, name
                data = data.replace(old, new)
            target.writestr(name, data)
    return made


def with_keywords(**keywords: list[str]) -> Seam:
    """A seam whose manifest says which keywords it takes."""
    seam = make_seam("rider", "recurrent", slots=["mamba_layer"])
    import attrs

    carrier = attrs.evolve(
        seam.manifest.carrier, **{name: tuple(value) for name, value in keywords.items()}
    )
    return attrs.evolve(seam, manifest=attrs.evolve(seam.manifest, carrier=carrier))


def test_a_seam_whose_equivalent_arrives_graduates_and_the_others_stay() -> None:
    seams = (LATENT, RIDER)
    asked = recipe("L-R", tokens={"L": "mla", "R": "recurrent"})
    found = preview(of_release("0.18", *seams), of_release("0.19", *seams), [("model", asked)])
    assert states(found) == {"latent": "graduates", "rider": "stays"}
    assert "native '+' builds mla (MLA, slot mla_layer)" in found.seams[0].why[0]
    (change,) = found.recipes
    assert [(layer.was, layer.now, layer.positions) for layer in change.layers] == [
        (
            "mla by seam latent of @acme/layers on attention_layer *",
            "mla by native on mla_layer +",
            (1,),
        )
    ]
    assert found.needs_person


def test_a_downgrade_needs_the_seam_again_and_without_it_is_refused() -> None:
    asked = [("model", recipe("+E+E"))]
    newer, older = of_release("0.19", LATENT), of_release("0.18", LATENT)
    found = preview(newer, older, asked)
    assert states(found) == {"latent": "needed again"}
    assert found.recipes[0].layers[0].positions == (1, 3)
    assert "seam latent of @acme/layers" in found.recipes[0].layers[0].now
    without = preview(of_release("0.19"), of_release("0.18"), asked)
    (reason,) = without.recipes[0].refused_after
    assert reason.positions == (1, 3)
    assert "a provider for family 'mla'" in reason.asked
    assert without.needs_person


def test_a_seam_that_fits_but_for_its_range_is_said_to() -> None:
    short = make_seam("short", "kda", slots=["mamba_layer"], requires=">=0.17,<0.19")
    lost = make_seam("lost", "gla", slots=["no_layer"], requires=">=0.17,<0.19")
    seams = (short, lost)
    found = preview(of_release("0.18", *seams), of_release("0.19", *seams))
    assert states(found) == {"short": "breaks", "lost": "breaks"}
    whys = {change.seam.name: change.why for change in found.seams}
    (why,) = whys["short"]
    assert "it would fit but for its range" in why
    assert len(whys["lost"]) == 2
    assert not any("would fit" in why for why in whys["lost"])


def test_nothing_needs_a_person_where_nothing_changes() -> None:
    same = of_release("0.19", LATENT, RIDER)
    found = preview(same, same, [("model", recipe("M+E-"))])
    assert states(found) == {"latent": "superseded", "rider": "stays"}
    assert not found.needs_person


def test_a_recipe_that_becomes_possible_is_shown_layer_by_layer() -> None:
    found = preview(of_release("0.18"), of_release("0.19"), [("model", recipe("+-"))])
    (change,) = found.recipes
    assert change.refused_before
    assert not change.refused_after
    assert [layer.positions for layer in change.layers] == [(1,), (2,)]
    assert {layer.was for layer in change.layers} == {"refused"}


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, "the manifest does not say what the seam takes"),
        ({"takes": ["config", "layer_number", "pg_collection", "name"]}, "the seam does not take"),
        ({"needs": ["pp_layer_offset", "name", "config"]}, "the seam does not take"),
    ],
)
def test_a_renamed_keyword_breaks_the_seam_and_both_names_are_said(
    keywords: dict[str, list[str]], expected: str, tmp_path: Path
) -> None:
    seam = with_keywords(**keywords) if keywords else RIDER
    renamed = edited(
        tmp_path, {STACK: ("pp_layer_offset=pp_layer_offset", "stage=pp_layer_offset")}
    )
    found = preview(of_release("0.19", seam), of(renamed, seam))
    assert states(found) == {"rider": "breaks"}
    (why,) = found.seams[0].why
    assert why.startswith("slot mamba_layer: ")
    assert "now passes" in why
    assert "'stage'" in why
    assert expected in why
    assert "no longer passes 'pp_layer_offset'" in why


def test_declared_keywords_let_a_seam_stay_where_upstream_adds_one_of_them() -> None:
    takes = ["config", "layer_number", "pg_collection", "pp_layer_offset", "name"]
    seam, silent = with_keywords(takes=takes), RIDER
    for chosen, state in ((seam, "stays"), (silent, "breaks")):
        found = preview(of_release("0.17", chosen), of_release("0.18", chosen))
        assert states(found) == {"rider": state}


def test_a_needed_keyword_that_goes_breaks_the_seam() -> None:
    seam = with_keywords(needs=["name"], takes=["config", "layer_number", "pp_layer_offset"])
    found = preview(of_release("0.18", seam), of_release("0.17", seam))
    assert "no longer passes 'name'" in found.seams[0].why[0]


def test_a_slot_that_is_gone_breaks_the_seam() -> None:
    seam = make_seam("rider", "recurrent", slots=["dsa_layer"])
    found = preview(of_release("0.18", seam), of_release("0.17", seam))
    assert states(found) == {"rider": "breaks"}
    assert "no slot that may carry it: it offers dsa_layer" in found.seams[0].why[0]


def test_an_exceeded_range_breaks_a_seam_and_graduating_outranks_it(tmp_path: Path) -> None:
    later = edited(tmp_path, {"megatron/core/package_info.py": ("MINOR = 19", "MINOR = 20")})
    narrow = {"requires": ">=0.17,<0.20"}
    seams = (
        make_seam(
            "latent",
            "mla",
            fallback="native",
            accepts={"symbol-name": "MLA"},
            slots=["attention_layer"],
            **narrow,
        ),
        make_seam("rider", "recurrent", slots=["mamba_layer"], **narrow),
    )
    found = preview(of_release("0.18", *seams), of(later, *seams))
    assert states(found) == {"latent": "graduates", "rider": "breaks"}
    assert "requires megatron-core >=0.17,<0.20" in " ".join(found.seams[1].why)


def test_a_native_block_that_the_manifest_does_not_accept_breaks_the_seam() -> None:
    seam = make_seam("latent", "mla", slots=["attention_layer"])
    found = preview(of_release("0.18", seam), of_release("0.19", seam))
    assert states(found) == {"latent": "breaks"}
    assert "contested: native '+' builds mla" in found.seams[0].why[0]


def test_the_command_prints_what_is_published_and_its_exit_code_says_so(repository: Path) -> None:
    older, newer = (str(megatron_releases.wheel(release)) for release in ("0.18", "0.19"))
    done = registry("preview", older, "+E", "M-", "--json", "--megatron", newer)
    assert done.returncode == 1, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    schema = json.loads((repository / "docs" / "schema" / "preview.schema.json").read_text())
    jsonschema.validate(found, schema)
    assert [one["name"] for one in found["recipes"]] == ["+E", "M-"]
    assert found["recipes"][1]["layers"] == []
    shown = registry("preview", older, "M-", "--megatron", newer)
    assert "megatron-core 0.19.2 -> 0.18" in shown.stdout
    assert "M-: no layer changes" in shown.stdout


def test_every_recipe_can_be_previewed(repository: Path) -> None:
    older, newer = (str(megatron_releases.wheel(release)) for release in ("0.18", "0.19"))
    files = sorted(map(str, (repository / "recipes").glob("*.toml")))
    done = registry("preview", newer, *files, "--json", "--megatron", older)
    assert done.returncode in (0, 1), done.stderr
    assert [one["name"] for one in json.loads(done.stdout)["recipes"]] == files


def test_a_glob_that_names_no_file_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    model = {"schema": 1, "model": {"name": "m", "pattern": "M-"}}
    (tmp_path / "recipes" / "m.toml").write_text(toml(model))
    globs = 'recipes = ["gone/*.toml", "recipes/*.toml"]\nrefused = ["later/*.toml"]\n'
    (tmp_path / "pyproject.toml").write_text(f"[tool.megatron-seams.holds]\n{globs}")
    wheel = str(megatron_releases.wheel("0.18"))
    done = registry("preview", wheel, "--json", cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    assert [one["name"] for one in json.loads(done.stdout)["recipes"]] == ["recipes/m.toml"]


def test_what_is_no_megatron_is_refused(tmp_path: Path) -> None:
    assert registry("preview", str(tmp_path)).returncode == 3
    broken = edited(tmp_path, {STACK: ("submodules.mamba_layer", "slots[layer_type]")})
    done = registry("preview", str(broken))
    assert done.returncode == 3
    assert "SEAM-S02" in done.stderr
