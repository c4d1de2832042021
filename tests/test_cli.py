"""The command line: exit codes, what is drawn, what programs read."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from megatron_seams.cli import cli
from seam_support import Table, install_plugin, manifest_table, registry, toml

ESCAPE = "\x1b"


@pytest.fixture(scope="session")
def schemas(repository: Path) -> dict[str, Any]:
    """The published schemas as validators, each of them checked to be one."""
    made = {}
    for file in sorted((repository / "docs" / "schema").glob("*.schema.json")):
        schema = json.loads(file.read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator.check_schema(schema)
        made[file.name.partition(".")[0]] = jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.FormatChecker()
        )
    assert set(made) >= {"list", "resolve", "receipt", "surface"}
    return made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plugins: a sound seam, an experiment, a feature, and one whose manifest is broken."""
    folder = tmp_path_factory.mktemp("site")
    for name, manifest in {
        "kda": manifest_table("kda", "kda", owner="@acme/linear"),
        "trial": manifest_table("trial", "lightning", status="experiment"),
        "memory": manifest_table("memory", "recall", placement="embedding"),
        "latent": manifest_table(
            "latent", "mla", fallback="native", accepts={"symbol-name": "MLA"}, requires="<0.19"
        ),
        "bad": {**manifest_table("bad", "bad"), "colour": "red"},
    }.items():
        install_plugin(folder, f"acme-{name}", {f"acme_{name}": manifest})
    return folder


def write_recipe(path: Path, pattern: str, **tables: Any) -> Path:
    """A recipe file with tokens for the plugins above."""
    model = {"name": path.stem, "pattern": pattern}
    tokens = {"tokens": {"K": "kda", "L": "lightning"}}
    path.write_text(toml({"schema": 1, "model": model, "dialect": tokens, **tables}))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A recipe with seams, an experiment, stages, a feature and every kind of setting."""
    return write_recipe(
        tmp_path / "model.toml",
        "MK|ML",
        policy={"experiments": ["trial"]},
        features=[{"family": "recall"}],
        seams={"kda": {"heads": 4}},
        override=[{"family": "kda", "seam": "kda", "reason": "a test", "expires": "2099-01-01"}],
        parallelism={"tensor-parallel": 2, "pipeline-parallel": 2},
    )


@pytest.fixture(autouse=True)
def _dated(request: pytest.FixtureRequest) -> None:
    # TOML has dates and `toml` writes strings as strings; the override's is the only one here.
    if "model" in request.fixturenames:
        file: Path = request.getfixturevalue("model")
        file.write_text(file.read_text().replace('"2099-01-01"', "2099-01-01"))


def invoke(*arguments: str | Path, code: int) -> str:
    """Both streams of a command run in this process: an answer to input needs no other one."""
    done = CliRunner().invoke(cli, [str(part) for part in arguments], prog_name="registry")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == code, done.output
    return done.output


# --- exit codes -------------------------------------------------------------------------------


def test_exit_code_0_is_fine(tmp_path: Path) -> None:
    registry("resolve", "M-M*", cwd=tmp_path, code=0)
    registry("surface", cwd=tmp_path, code=0)
    registry("explain", "mamba", cwd=tmp_path, code=0)


def test_exit_code_1_is_findings(site: Path, tmp_path: Path) -> None:
    done = registry("list", path=[site], cwd=tmp_path, code=1)
    assert "SEAM-D04" in done.stderr
    assert "SEAM-D04" in done.stdout  # in the broken seam's row
    # A plan that can be made is fine; other faults of the environment are reported beside it.
    resolved = registry("resolve", "M", path=[site], cwd=tmp_path, code=0)
    assert "SEAM-D04" in resolved.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("resolve", "MQ"),
        ("resolve", ""),
        ("resolve", "   "),
        ("resolve", "*D"),
        ("resolve", "M", "--depth", "0"),
        ("resolve", "M", "--dialect", "klingon"),
        ("resolve", "nowhere.toml"),
        ("resolve", "nowhere.json"),
        ("resolve", "M", "--receipt", "no/such/folder/receipt.json"),
        ("resolve",),
        ("resolve", "M", "M"),
        ("explain", "Q"),
        ("explain", "not_a_family"),
        ("explain", "K", "--recipe", "nowhere.toml"),
        ("verify", "nowhere.json"),
        ("no-such-command",),
        ("list", "--colour"),
    ],
)
def test_exit_code_2_is_refused_or_bad_input(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(*arguments, code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--megatron", "nowhere"),
        ("resolve", "M", "--megatron", "nowhere"),
        ("resolve", "M", "--megatron", "nowhere", "--json"),
        ("explain", "M", "--megatron", "nowhere"),
        ("surface", "nowhere"),
        ("surface", "unknown"),
        ("resolve", "M", "--megatron", "unknown"),
    ],
)
def test_exit_code_3_is_a_broken_environment(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "unknown" / "megatron" / "core"
    odd.mkdir(parents=True)
    (odd / "package_info.py").write_text("MAJOR = 0\n")
    assert re.search("SEAM-S0[12]", invoke(*arguments, code=3))


def test_with_an_unknown_megatron_the_listing_says_so_first_and_lists_the_seams(
    site: Path, tmp_path: Path
) -> None:
    (tmp_path / "megatron" / "core").mkdir(parents=True)
    (tmp_path / "megatron" / "core" / "package_info.py").write_text("MAJOR = 0\n")
    done = registry("list", "--megatron", tmp_path, path=[site], cwd=tmp_path, code=3)
    assert done.stdout.startswith("a Megatron that cannot be read: none is native")
    assert "acme-bad" in done.stdout
    assert done.stderr.startswith("[SEAM-S02]")


# --- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["-M-", "-", "--M", "-*-M", "-m"])
def test_a_pattern_may_begin_with_a_dash(pattern: str, tmp_path: Path) -> None:
    known = set(pattern) <= set("-M*")
    done = registry("resolve", pattern, "--json", cwd=tmp_path, code=0 if known else 2)
    found = json.loads(done.stdout)
    if known:
        assert "".join(layer["token"] for layer in found["plan"]["layers"]) == pattern
    else:
        assert found["reasons"][0]["subject"] == "m"


def test_a_token_may_be_a_dash(tmp_path: Path) -> None:
    done = registry("explain", "-", cwd=tmp_path, code=0)
    assert "dialect megatron: - is mlp" in done.stdout
    assert "dialect nam: - is refused" in done.stdout


def test_a_bare_pattern_is_read_in_the_dialect_and_to_the_depth_given(tmp_path: Path) -> None:
    done = registry(
        "resolve", "AEM", "--dialect", "nam", "--depth", "7", "--json", cwd=tmp_path, code=0
    )
    plan = json.loads(done.stdout)["plan"]
    assert [layer["token"] for layer in plan["layers"]] == list("AEMAEMA")
    assert plan["lowered_pattern"] == "*EM*EM*"


def test_dialect_and_depth_do_not_go_with_a_recipe(model: Path, site: Path, tmp_path: Path) -> None:
    for option in (("--depth", "4"), ("--dialect", "nam")):
        done = registry("resolve", model, *option, path=[site], cwd=tmp_path, code=2)
        assert "the recipe states both" in done.stderr


@pytest.mark.parametrize(
    ("config", "code", "says"),
    [
        ({"hybrid_override_pattern": "M-M*", "num_hidden_layers": 4}, 0, "4 layers"),
        ({"hybrid_override_pattern": "M-M*"}, 0, "4 layers"),
        ({"hybrid_override_pattern": "M-M*", "num_hidden_layers": 5}, 2, "num_hidden_layers is 5"),
        ({"hidden_size": 4096}, 2, "no hybrid_override_pattern"),
        (["M-M*"], 2, "its top level is a list, not an object"),
        (
            {"hybrid_override_pattern": 4},
            2,
            "hybrid_override_pattern is 4, neither text nor a list",
        ),
    ],
)
def test_a_hugging_face_configuration_is_read(
    config: Any, code: int, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert says in invoke("resolve", path, code=code)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model's folder, a recipe and files of other kinds."""
    (tmp_path / "model").mkdir()
    config = {"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.toml").write_text(
        toml({"schema": 1, "model": {"name": "x", "pattern": "M"}})
    )
    for name in ("run.yaml", "run.py", "weights", "M-"):
        (tmp_path / name).touch()
    (tmp_path / "M").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize("name", ["model", "model/", "./model", "model/config.json"])
def test_a_models_folder_is_read_by_its_configuration(name: str) -> None:
    assert "nemotron_h: 4 layers" in invoke("resolve", name, code=0)
    assert "M-M*" in invoke("args", name, code=0)


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize(
    ("name", "found", "advice"),
    [
        ("org/Model-30B-v2", "no such file or folder", "download its config.json"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "no such file", "nothing is fetched"),
        ("recipes/mine", "no such file or folder", "name recipes/mine.toml"),
        ("mine", "no such file or folder", "name a recipe (.toml)"),
        ("./nowhere", "no such file or folder", "name a recipe (.toml)"),
        ("run.yaml", "it is a YAML file", "name a recipe (.toml)"),
        ("other.yaml", "no such file or folder", "a YAML file is not read"),
        ("other.py", "no such file or folder", "a Python file is not read"),
        ("run.py", "it is a Python file", "name a recipe (.toml)"),
        ("weights", "it is a file of no known kind", "name a recipe (.toml)"),
        ("recipes", "it is a folder without a config.json", "name one of its recipes"),
        ("M", "it is a folder without a config.json", "for the pattern 'M', add --dialect"),
        ("M-", "it is a file of no known kind", "for the pattern 'M-', add --dialect"),
        ("model.json", "there is no such file", "correct the path"),
    ],
)
def test_a_path_is_refused_once_with_the_next_step(name: str, found: str, advice: str) -> None:
    for command in ("resolve", "args", "smoke"):
        printed = invoke(command, name, code=2)
        assert "refused: 1 reason" in printed
        assert found in printed
        assert advice in printed


@pytest.mark.usefixtures("places")
def test_the_next_step_for_a_pattern_that_is_a_folders_name_works() -> None:
    assert "M: 1 layer, dialect" in invoke("resolve", "M", "--dialect", "megatron", code=0)
    assert "MMM" in invoke("args", "M", "--depth", "3", code=0)


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize(
    "text", ["-M-M", "M|M*", "M*M*/MD", "/MM/MM", "m-m*", "M*-\uff25", "'M*-'", "AEMR/A-"]
)
def test_a_pattern_stays_a_pattern(text: str) -> None:
    done = CliRunner().invoke(cli, ["resolve", text], prog_name="registry")
    assert "no such file" not in done.output
    assert done.exit_code == (0 if text in {"-M-M", "M|M*", "M*M*/MD"} else 2)


@pytest.mark.usefixtures("places")
def test_dialect_and_depth_do_not_go_with_a_configuration() -> None:
    for option in (("--depth", "4"), ("--dialect", "nam")):
        assert "go with a bare pattern" in invoke("resolve", "model/config.json", *option, code=2)


def test_notes_of_a_configuration_are_in_the_answer_for_a_program(
    tmp_path: Path, schemas: dict[str, Any]
) -> None:
    config = {"model_type": "bamba", "attn_layer_indices": [1], "num_hidden_layers": 2}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    done = registry("resolve", path, "--json", cwd=tmp_path, code=0)
    assert valid(schemas["resolve"], done.stdout)["notes"] == [
        "each of bamba's 2 layers is two of Megatron's, its mixer and its feed-forward layer"
    ]


def test_a_configuration_that_is_no_json_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[" * 100_000, "\x00"):
        (tmp_path / "config.json").write_text(text)
        assert "SEAM-C01" in invoke("resolve", tmp_path / "config.json", code=2)


def test_every_fault_of_a_recipe_is_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'schema = 2\ncolour = "red"\n[model]\nname = 3\npattern = "M"\ndepth = 0\n'
        '[parallelism]\ntensor-parallel = "2"\n[runtime]\ninference = "false"\n'
        '[[layers]]\npositions = [1, "2"]\nfamily = "mla"\n'
    )
    done = registry("resolve", path, "--json", cwd=tmp_path, code=2)
    assert [reason["key"] for reason in json.loads(done.stdout)["reasons"]] == [
        "colour",
        "layers[0].positions[1]",
        "model.depth",
        "model.name",
        "parallelism.tensor-parallel",
        "runtime.inference",
        "schema",
    ]


# --- what is drawn ----------------------------------------------------------------------------


def test_plain_text_where_nobody_looks(model: Path, site: Path, tmp_path: Path) -> None:
    for arguments in (("list", "--owners"), ("resolve", model), ("resolve", "MQ"), ("surface",)):
        done = registry(*arguments, path=[site], cwd=tmp_path)
        assert ESCAPE not in done.stdout + done.stderr


def in_a_terminal(*arguments: str | Path, path: Path, cwd: Path, **variables: str) -> str:
    """The output of a command on a terminal of 256 colours."""
    leader, follower = pty.openpty()
    settings = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    kept = [settings["PYTHONPATH"]] if settings.get("PYTHONPATH") else []
    settings["PYTHONPATH"] = os.pathsep.join([str(path), *kept])
    settings |= {"TERM": "xterm-256color", "COLUMNS": "120", **variables}
    with subprocess.Popen(
        [sys.executable, "-m", "megatron_seams", *map(str, arguments)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=settings,
        cwd=cwd,
    ) as process:
        os.close(follower)
        parts = []
        try:
            while part := os.read(leader, 65536):
                parts.append(part)
        except OSError:  # the terminal's way of saying that the other end is closed
            pass
        process.wait(timeout=60)
    os.close(leader)
    return b"".join(parts).decode()


def test_colour_in_a_terminal_and_the_same_words(model: Path, site: Path, tmp_path: Path) -> None:
    drawn = in_a_terminal("resolve", model, path=site, cwd=tmp_path)
    assert f"{ESCAPE}[" in drawn
    plain = re.sub(r"\x1b\[[0-9;]*m", "", drawn)
    for printed in ("native 2", "seam 1", "experiment 1", "@acme/linear", "MK ML"):
        assert printed in plain
    assert ESCAPE not in in_a_terminal("resolve", model, path=site, cwd=tmp_path, TERM="dumb")
    refused = in_a_terminal("resolve", "MQ", path=site, cwd=tmp_path)
    assert f"{ESCAPE}[" in refused


def test_json_has_no_colour_even_in_a_terminal(model: Path, site: Path, tmp_path: Path) -> None:
    drawn = in_a_terminal("resolve", model, "--json", path=site, cwd=tmp_path)
    assert json.loads(drawn)["outcome"] == "plan"


def strip_of(text: str) -> tuple[str, str]:
    """The tokens and the marks of a strip of one row."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if re.match(r" +1 \S", line))
    return lines[at][7:], lines[at + 1][7:]


def test_the_strip_marks_seams_and_experiments(model: Path, site: Path, tmp_path: Path) -> None:
    done = registry("resolve", model, path=[site], cwd=tmp_path, code=0)
    assert strip_of(done.stdout) == ("MK ML", ".^ .?")
    assert ". native 2   ^ seam 1   ? experiment 1" in done.stdout


def test_the_strip_marks_the_layers_that_are_refused_and_only_those(tmp_path: Path) -> None:
    done = registry("resolve", "M?MQ", "--depth", "8", cwd=tmp_path, code=2)
    assert strip_of(done.stdout) == ("M?MQM?MQ", " x x x x")
    assert "x refused 4" in done.stdout
    assert "layers: 2, 6" in done.stderr
    assert "layers: 4, 8" in done.stderr
    assert "refused: 2 reasons" in done.stderr


def test_a_refusal_that_concerns_no_layer_draws_no_strip() -> None:
    printed = invoke("resolve", "M*|MD", code=2)
    assert "SEAM-R08" in printed
    assert "M*MD" not in printed


def test_a_long_model_is_drawn_in_numbered_rows(tmp_path: Path) -> None:
    done = registry("resolve", "M-", "--depth", "130", cwd=tmp_path, code=0)
    numbers = [int(n) for n in re.findall(r"^ +(\d+) [M-]+ *$", done.stdout, re.MULTILINE)]
    assert numbers == [1, 61, 121]


def test_layers_gives_one_row_for_each_layer(model: Path, site: Path, tmp_path: Path) -> None:
    done = registry("resolve", model, "--layers", path=[site], cwd=tmp_path, code=0)
    table = done.stdout.partition("\nlayer  token")[2]
    rows = [line.split() for line in table.splitlines() if re.match(r"\d ", line)]
    assert [(row[0], row[1]) for row in rows[:4]] == [
        ("1", "M"), ("2", "K"), ("3", "M"), ("4", "L"),
    ]  # fmt: skip


def test_what_a_terminal_cannot_show_is_neither_sent_to_it_nor_an_error(tmp_path: Path) -> None:
    for pattern in ("M\x1b[31m", "M\x07", "M\udcff", "M\u202e"):
        done = registry("resolve", pattern, cwd=tmp_path, code=2, PYTHONIOENCODING="utf-8:strict")
        assert not set("\x1b\x07\u202e") & set(done.stdout + done.stderr), repr(done.stderr)
        assert "SEAM-P02" in done.stderr
    assert json.loads(registry("resolve", "\udcff", "--json", cwd=tmp_path, code=2).stdout)


def test_a_reader_that_stops_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m megatron_seams resolve M --depth 5000 --layers --json | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


def test_owners_are_listed_with_what_retires_each_seam(site: Path, tmp_path: Path) -> None:
    done = registry("list", "--owners", path=[site], cwd=tmp_path)
    # The lines of a row after its first begin with blanks.
    rows = {row.split()[0]: row for row in re.split(r"\n(?=\S)", done.stdout)}
    assert "@acme/linear" in rows["kda"]
    assert "refuse" in rows["kda"]
    assert "experiment" in rows["lightning"]
    assert "superseded" in rows["mla"]
    assert "native (MLA)" in rows["mla"]
    assert "NVIDIA/Megatron-LM" in rows["mla"]
    assert "NVIDIA/Megatron-LM" in rows["mamba"]
    assert "native" in rows["mamba"]


def test_explain_says_why_and_what_would_change_it(model: Path, site: Path, tmp_path: Path) -> None:
    def explained(*arguments: str | Path) -> str:
        return registry("explain", *arguments, path=[site], cwd=tmp_path, code=0).stdout

    token = explained("D")
    assert "dialect megatron: D is dsa" in token
    assert "dialect nam: D is refused: published tables disagree" in token
    assert "native" in token
    assert "K is kda" in explained("K", "--recipe", model)
    assert "@acme/linear" in explained("kda")
    assert "what would change it" in explained("kda")
    assert "MLA retires it, and this Megatron has it" in explained("mla")
    assert 'experiments = ["trial"]' in explained("lightning")


# --- what programs read -----------------------------------------------------------------------


def valid(validator: Any, text: str) -> Table:
    document: Table = json.loads(text)
    errors = sorted(validator.iter_errors(document), key=lambda error: error.json_path)
    assert not errors, "\n".join(f"{error.json_path}: {error.message}" for error in errors)
    return document


def test_json_of_list_is_as_published(schemas: dict[str, Any], site: Path, tmp_path: Path) -> None:
    for path in ([site], []):
        done = registry("list", "--json", path=path, cwd=tmp_path)
        found = valid(schemas["list"], done.stdout)
        assert done.returncode == (1 if found["findings"] else 0)
    states = {row["family"]: row["state"] for row in found["families"]}
    assert states["mamba"] == "native"


def test_json_of_list_without_a_readable_megatron_is_as_published(
    schemas: dict[str, Any], site: Path, tmp_path: Path
) -> None:
    (tmp_path / "megatron" / "core").mkdir(parents=True)
    (tmp_path / "megatron" / "core" / "package_info.py").write_text("MAJOR = 0\n")
    done = registry("list", "--json", "--megatron", tmp_path, path=[site], cwd=tmp_path)
    assert valid(schemas["list"], done.stdout)["megatron_core"]["version"] is None


def test_json_of_resolve_is_as_published(
    schemas: dict[str, Any], model: Path, site: Path, tmp_path: Path
) -> None:
    for arguments in ((model,), ("M-M*|E-E*/*E/*E",)):
        done = registry("resolve", *arguments, "--json", path=[site], cwd=tmp_path, code=0)
        assert valid(schemas["resolve"], done.stdout)["outcome"] == "plan"
    for arguments in (("MQ?",), ("",), ("none.toml",), ("M", "--megatron", "nowhere")):
        done = registry("resolve", *arguments, "--json", path=[site], cwd=tmp_path)
        assert done.returncode in (2, 3)
        assert valid(schemas["resolve"], done.stdout)["outcome"] == "refused"


def test_a_receipt_is_as_published(
    schemas: dict[str, Any], model: Path, site: Path, tmp_path: Path
) -> None:
    receipt = tmp_path / "receipt.json"
    registry("resolve", model, "--receipt", receipt, path=[site], cwd=tmp_path, code=0)
    found = valid(schemas["receipt"], receipt.read_text(encoding="utf-8"))
    assert found["request"]["override"][0]["expires"] == "2099-01-01"


def test_the_schemas_share_their_definitions_and_take_no_unknown_key(
    schemas: dict[str, Any],
) -> None:
    shared: dict[str, Any] = {}
    for validator in schemas.values():
        for name, definition in validator.schema.get("$defs", {}).items():
            assert shared.setdefault(name, definition) == definition
    document = {"schema": 1, "outcome": "refused", "reasons": [], "findings": [], "extra": 1}
    assert not schemas["resolve"].is_valid(document)
