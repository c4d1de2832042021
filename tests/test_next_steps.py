"""The next step of a message works when it is followed literally."""

import datetime
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
from click.testing import CliRunner

from megatron_seams.cli import cli, commands
from megatron_seams.cli.advice import ADVICE, advice_on
from megatron_seams.cli.docs import PAGES, pages
from megatron_seams.errors import MegatronMissing, NoArgument, NoProvider, Refusal
from megatron_seams.governance.codeowners import find_codeowners
from megatron_seams.planning.resolver import resolve
from megatron_seams.upstream.source import MegatronSource
from megatron_seams.upstream.surface import NativeSurface, NativeSymbol
from seam_support import TODAY, environment, make_seam, recipe, surface, toml

MODEL = {"schema": 1, "model": {"name": "x", "pattern": "M"}}


def invoke(*arguments: str | Path, code: int) -> str:
    done = CliRunner().invoke(cli, [str(part) for part in arguments], prog_name="registry")
    assert done.exit_code == code, done.output
    return done.output


# --- pages ------------------------------------------------------------------------------------


def test_every_page_and_command_that_is_named_is_there(repository: Path) -> None:
    source = repository / "core" / "src" / "megatron_seams"
    texts = [*ADVICE.values(), *(command.help or "" for command in commands().values())]
    texts += [file.read_text() for file in source.rglob("*.py")]
    named = {page for text in texts for page in re.findall(r"registry docs ([a-z][\w.-]*\w)", text)}
    assert len(named) > 6
    assert named <= set(pages())
    for text in ADVICE.values():
        for command in re.findall(r"registry ([a-z]+)", text):
            assert command in commands()


def test_the_pages_are_those_of_the_repository_and_travel_with_the_package(
    repository: Path,
) -> None:
    assert PAGES.resolve() == (repository / "docs").resolve()
    assert PAGES.parent == (repository / "core" / "src" / "megatron_seams").resolve()
    assert {"errors", "cli", "recipe.schema.json", "manifest.schema.json"} <= set(pages())


def test_pages_are_listed_read_and_nearly_named() -> None:
    assert re.search(r"^errors +Error codes$", invoke("docs", code=0), re.MULTILINE)
    assert invoke("docs", "errors", code=0).startswith("# Error codes\n")
    assert json.loads(invoke("docs", "recipe.schema.json", code=0))["title"]
    assert "did you mean errors?" in invoke("docs", "error", code=2)
    assert "`registry docs` lists them" in invoke("docs", "zzz", code=2)


# --- files that are not there -----------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "small-hybrid.toml").write_text(toml(MODEL))
    (tmp_path / "plan.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("resolve", "recipes/small-hybird.toml"), "recipes/small-hybrid.toml"),
        (("resolve", "small-hybrid.toml"), "recipes/small-hybrid.toml"),
        (("args", "recipe/small-hybrid.toml"), "recipes/small-hybrid.toml"),
        (("explain", "M", "--recipe", "small_hybrid.toml"), "recipes/small-hybrid.toml"),
        (("verify", "plans.json"), "plan.json"),
        (("accept", "plam.json", "--reason", "a reason"), "plan.json"),
    ],
)
def test_a_file_that_is_not_there_is_refused_with_the_one_that_is_meant(
    arguments: tuple[str, ...], meant: str
) -> None:
    shown = invoke(*arguments, code=2)
    assert f"did you mean {meant}?" in shown
    assert Path(meant).is_file()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "arguments",
    [("resolve", "nowhere.toml"), ("resolve", "no/where.json"), ("verify", "nothing.json")],
)
def test_no_file_is_made_up(arguments: tuple[str, ...]) -> None:
    shown = invoke(*arguments, code=2)
    assert "there is no such file" in shown
    assert "did you mean" not in shown


# --- the line of CODEOWNERS -------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "plugins", "team a/plugins"])
def test_the_line_of_codeowners_gives_the_new_folder_to_its_owner_from_anywhere(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "repository"
    (root / ".git").mkdir(parents=True)
    (root / ".github").mkdir()
    owners = root / ".github" / "CODEOWNERS"
    owners.write_text("* @acme/all\n")
    (root / inside).mkdir(parents=True, exist_ok=True)
    for at, out in ((root / inside, Path()), (tmp_path, root / inside), (root, Path(inside))):
        monkeypatch.chdir(at)
        shown = invoke(
            "new", "kda", "--family", "kda", "--owner", "@acme/kda", "--out", out, code=0
        )
        (line,) = re.findall(r"^to add to (.*?CODEOWNERS): (.*)$", shown, re.MULTILINE)
        assert Path(line[0]).resolve() == owners.resolve()
        owners.write_text(f"* @acme/all\n{line[1]}\n")
        found = find_codeowners(root)
        assert found is not None
        assert found.skipped == ()
        manifest = (Path(inside) / "seam-kda/src/seam_kda/seam.toml").as_posix()
        assert found.matching(manifest)[0].owners == ("@acme/kda",)
        assert found.matching("other/seam-kda/x")[0].owners == ("@acme/all",)
        shutil.rmtree(root / inside / "seam-kda")


def test_without_a_repository_the_line_says_that_its_path_is_to_be_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = invoke("new", "kda", "--family", "kda", "--owner", "@acme/kda", code=0)
    assert "with the path from your repository's root: /seam-kda/ @acme/kda" in shown


# --- one cause --------------------------------------------------------------------------------


def test_without_a_megatron_there_is_one_cause_with_its_layers() -> None:
    fault = MegatronMissing(asked="a megatron-core", found="there is none", next="install it")
    where = environment(native=NativeSurface(), faults=[fault])
    with pytest.raises(Refusal) as refused:
        resolve(recipe("MEK*", tokens={"K": "kda"}), where, today=TODAY)
    missing, unknown = refused.value.reasons
    assert isinstance(missing, MegatronMissing)
    assert missing.positions == (1, 2, 4)
    # No Megatron is known to build this one: it has a cause of its own.
    assert isinstance(unknown, NoProvider)
    assert unknown.positions == (3,)
    assert refused.value.findings == ()


# --- the workspace's recipes ------------------------------------------------------------------


def test_preview_takes_the_recipes_of_the_workspace(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "pyproject.toml").write_text("[tool.megatron-seams.policy]\n")
    place = "megatron_seams.cli.preview.read_environment"
    monkeypatch.setattr(place, lambda _=None: environment())
    assert "recipes/small-hybrid.toml: no layer changes" in invoke("preview", "x.whl", code=0)
    monkeypatch.chdir(folder / "recipes")
    assert "small-hybrid.toml: no layer changes" in invoke("preview", "x.whl", code=0)
    (folder / "recipes" / "small-hybrid.toml").unlink()
    assert "no recipe was looked at: name one" in invoke("preview", "x.whl", code=0)


# --- schemas of what people write -------------------------------------------------------------


def as_json(value: Any) -> Any:
    """A TOML table as an editor hands it to a schema: its dates are texts."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return value.isoformat() if isinstance(value, datetime.date) else value


def test_the_schemas_take_every_recipe_and_manifest_here_and_no_unknown_key(
    repository: Path,
) -> None:
    files = {
        "recipe": sorted((repository / "recipes").glob("*.toml")),
        "manifest": sorted(repository.glob("plugins/*/src/**/seam.toml")),
    }
    for kind, written in files.items():
        schema = json.loads(pages()[f"{kind}.schema.json"].read_text())
        validator = jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.FormatChecker()
        )
        assert kind == "manifest" or len(written) > 5
        for file in written:
            table = as_json(tomllib.loads(file.read_text()))
            validator.validate(table)
            table["colour"] = "red"
            assert not validator.is_valid(table)
            assert not validator.is_valid({**table, "schema": 2})


def test_surface_takes_a_seams_word_for_a_symbol_as_plans_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The advice of SEAM-S04 ends it."""
    native = surface()
    symbol = NativeSymbol(constant="CSA", symbol="C", slot="csa_layer", keywords=("config",))
    source = MegatronSource(origin="/a/megatron", read=lambda _: None)
    module = "megatron_seams.cli.surface"
    monkeypatch.setattr(f"{module}.open_megatron", lambda _: source)
    found = attrs.evolve(native, symbols=(*native.symbols, symbol))
    monkeypatch.setattr(f"{module}.read_surface", lambda _: found)
    monkeypatch.setattr(f"{module}.discover", lambda: environment().discovery)
    shown = invoke("surface", "x", code=1)
    assert "SEAM-S04" in shown
    assert 'symbol-name = "CSA"' in shown
    claim = {"fallback": "native", "accepts": {"symbol-name": "CSA"}}
    seam = make_seam("csa", "compressed", **claim)
    monkeypatch.setattr(f"{module}.discover", lambda: environment(seam).discovery)
    shown = invoke("surface", "x", code=0)
    assert re.search(r"^C +CSA +compressed +csa_layer", shown, re.MULTILINE)
    assert "SEAM-S04" not in shown


def test_a_command_is_advised_only_where_it_helps() -> None:
    told = NoArgument(asked="a", found="f", next="plan against a Megatron with its trainer: x")
    assert advice_on(told) == "see: registry args RECIPE --megatron CHECKOUT"
    assert advice_on(NoArgument(asked="a", found="f", next="leave it out of the recipe")) == ""
