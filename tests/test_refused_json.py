"""With ``--json`` every answer is one JSON document of a published schema, a refusal too."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from megatron_seams.cli import cli, commands
from seam_support import environment, make_seam, registry, surface, toml

MODEL = {
    "schema": 1,
    "model": {"name": "test model", "pattern": "K*", "dialect": "megatron"},
    "dialect": {"tokens": {"K": "kda"}},
}


@pytest.fixture
def schemas(repository: Path) -> dict[str, Any]:
    folder = repository / "docs" / "schema"
    return {file.name: json.loads(file.read_text()) for file in folder.iterdir()}


def answer(code: int, *arguments: str | Path) -> Any:
    done = CliRunner().invoke(cli, [str(part) for part in arguments], prog_name="registry")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    [
        ("list", ("--megatron", "nowhere"), 3),
        ("surface", ("nowhere",), 3),
        ("explain", ("Q",), 2),
        ("explain", ("K", "--recipe", "nowhere.toml"), 2),
        ("args", ("MQ",), 2),
        ("args", ("nowhere.toml",), 2),
        ("resolve", ("org/Model-30B-v2",), 2),
        ("resolve", ("M", "--megatron", "nowhere"), 3),
        ("smoke", ("MQ",), 2),
        ("preview", ("nowhere.whl",), 3),
        ("verify", ("nowhere.json",), 2),
        ("accept", ("nowhere.json", "--reason", "a reason"), 2),
        ("accept", ("nowhere.json", "--reason", " "), 2),
        ("graduate", ("kda", "--from", "nowhere"), 2),
    ],
)
def test_a_refusal_is_one_document(
    command: str,
    arguments: tuple[str, ...],
    code: int,
    schemas: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found = answer(code, command, *arguments, "--json")
    jsonschema.validate(found, schemas["refused.schema.json"])
    assert found["reasons"][0]["next"]
    own = schemas.get(f"{command}.schema.json")
    if own is not None and "oneOf" in own:
        jsonschema.validate(found, own)


def test_the_gates_json_is_a_refusal_too(
    schemas: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.megatron-seams]\ncolour = 1\n")
    found = answer(2, "check", "--format", "json")
    jsonschema.validate(found, schemas["refused.schema.json"])
    assert [reason["code"] for reason in found["reasons"]] == ["SEAM-W01"]


def test_every_command_that_answers_programs_was_refused_above() -> None:
    marks: Any = getattr(test_a_refusal_is_one_document, "pytestmark")  # noqa: B009 - unknown to mypy
    tried = {case[0] for case in marks[0].args[1]}
    answering = {
        name
        for name, command in commands().items()
        if any(parameter.name == "as_json" for parameter in command.params)
    }
    assert tried == answering - {"doctor"}  # which refuses nothing: it lists what it finds


def test_verify_and_accept_answer_programs(
    schemas: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.toml"
    model.write_text(toml(MODEL))
    receipt = tmp_path / "receipt.json"
    where = {"now": environment(make_seam("kda", "kda"))}
    for name in ("resolve", "verify", "accept"):
        place = f"megatron_seams.cli.{name}.read_environment"
        monkeypatch.setattr(place, lambda _: where["now"])
    answer(0, "resolve", model, "--receipt", receipt, "--json")
    found = answer(0, "verify", receipt, "--json")
    jsonschema.validate(found, schemas["verify.schema.json"])
    assert found["outcome"] == "same"
    where["now"] = environment(make_seam("kda", "kda", version="2.0"), native=surface("0.19.1"))
    found = answer(2, "verify", receipt, "--json")
    jsonschema.validate(found, schemas["verify.schema.json"])
    assert found["outcome"] == "differs"
    keys = {difference["key"] for difference in found["differences"]}
    assert "seams.kda.version" in keys
    asked = ("accept", receipt, "--reason", "it was reviewed", "--by", "the reviewer", "--json")
    found = answer(0, *asked)
    jsonschema.validate(found, schemas["accept.schema.json"])
    assert found["outcome"] == "accepted"
    assert {difference["key"] for difference in found["differences"]} == keys
    assert answer(0, *asked)["outcome"] == "unchanged"


def test_a_streams_encoding_does_not_break_the_document(tmp_path: Path) -> None:
    (tmp_path / "café.toml").write_text(toml({**MODEL, "colour": "größer"}), encoding="utf-8")
    for encoding in ("ascii", "latin-1", "utf-8"):
        done = registry(
            "resolve", "café.toml", "--json", cwd=tmp_path, code=2, PYTHONIOENCODING=encoding
        )
        assert (
            json.loads(done.stdout.encode().decode(encoding))["reasons"][0]["file"] == "café.toml"
        )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("list", "--json", "--colour"), "No such option"),
        (("resolve", "--json"), "Missing argument"),
        (("--json", "lsit"), "No such option"),
        (("lsit", "--json"), "No such command 'lsit'"),
        (("accept", "nowhere.json", "--json"), "Missing option '--reason'"),
        (("smoke", "M", "--steps", "many", "--json"), "'many' is not a valid integer"),
        (("check", "--format", "json", "--codeowners"), "requires an argument"),
        (("check", "--format=json", "--colour"), "No such option"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_document_too(
    arguments: tuple[str, ...], expected: str, schemas: dict[str, Any]
) -> None:
    done = registry(*arguments, code=2)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    jsonschema.validate(found, schemas["refused.schema.json"])
    (reason,) = found["reasons"]
    assert reason["code"] == "SEAM-A02"
    assert expected in reason["found"]
    assert reason["next"].startswith("follow its usage: registry")


def test_for_a_person_it_stays_text() -> None:
    done = registry("resolve", "--dialect", "nam", "--", "--json", "M", code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("[SEAM-A02] the command line of registry resolve\n")
    assert "usage: registry resolve [OPTIONS] PATTERN|RECIPE|config.json\n" in done.stderr
