"""``registry smoke``, as it is typed."""

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from megatron_seams.cli import cli
from megatron_seams.errors import ExitCode

RECIPE = """
schema = 1

[model]
name = "toy"
pattern = "{pattern}"

[smoke]
steps = 100
batch = 8
sequence = 64

[smoke.megatron]
hidden_size = 64
ffn_hidden_size = 128
"""


def recipe(folder, pattern):
    file = folder / "toy.toml"
    file.write_text(RECIPE.format(pattern=pattern), encoding="utf-8")
    return str(file)


@pytest.mark.megatron
def test_a_recipe_is_trained_and_its_receipt_is_written(tmp_path):
    receipt = tmp_path / "receipt.json"
    data = tmp_path / "data"
    data.write_bytes(b"the same line over and over again\n" * 400)
    command = ["smoke", recipe(tmp_path, "*-*-"), "--data", str(data), "--receipt", str(receipt)]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == ExitCode.OK, done.output
    assert "100 steps of 8 x 64 bytes of data" in done.output
    assert "below what a model without context can reach" in done.output
    kept = json.loads(receipt.read_text(encoding="utf-8"))
    assert kept["plan"]["name"] == "toy"
    assert f"receipt {kept['digest']}" in done.output


@pytest.mark.megatron
def test_a_run_that_learns_nothing_is_a_finding(tmp_path):
    done = CliRunner().invoke(cli, ["smoke", recipe(tmp_path, "*-"), "--steps", "1", "--json"])
    assert done.exit_code == ExitCode.FINDINGS, done.output
    assert "NOT below" in done.stderr
    schemas = Path(__file__).resolve().parents[2] / "docs" / "schema"
    found = json.loads(done.stdout)
    jsonschema.validate(found, json.loads((schemas / "smoke.schema.json").read_text()))
    assert (found["learned"], len(found["losses"]), found["proof"]) == (False, 1, None)


@pytest.mark.megatron
def test_a_run_that_diverges_is_a_finding_and_its_document_is_json(tmp_path):
    file = Path(recipe(tmp_path, "*-"))
    file.write_text(file.read_text().replace("sequence = 64", "sequence = 8\nlearning-rate = 1e25"))
    done = CliRunner().invoke(cli, ["smoke", str(file), "--steps", "12", "--json"])
    assert done.exit_code == ExitCode.FINDINGS, done.output
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    schemas = Path(__file__).resolve().parents[2] / "docs" / "schema"
    jsonschema.validate(found, json.loads((schemas / "smoke.schema.json").read_text()))
    assert found["losses"][0] is not None
    assert found["losses"][-1] is found["held_back_loss"] is None


@pytest.mark.megatron
@pytest.mark.parametrize(("bound", "code"), [(0.0, ExitCode.OK), (99.0, ExitCode.FINDINGS)])
def test_an_impossible_loss_is_a_finding_with_a_proof_too(bound, code, tmp_path, monkeypatch):
    import attrs

    from megatron_seams.runtime.smoke import run

    drawn = run.draw_independent
    monkeypatch.setattr(
        run,
        "draw_independent",
        lambda *args, **given: attrs.evolve(drawn(*args, **given), bound=bound),
    )
    command = ["smoke", recipe(tmp_path, "*-"), "--steps", "1", "--save", str(tmp_path / "proof")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == code, done.output
    assert ("SEES the bytes" in done.output) == (code != ExitCode.OK)


@pytest.mark.megatron
def test_layers_that_need_a_gpu_are_refused_with_the_reason(tmp_path):
    done = CliRunner().invoke(cli, ["smoke", recipe(tmp_path, "M*G-")])
    assert done.exit_code == ExitCode.REFUSED
    assert "mamba-ssm" in done.output
    assert "flash-linear-attention" in done.output
    assert "refused: 2 reasons" in done.output


@pytest.mark.megatron
def test_a_receipt_that_cannot_be_written_is_said_before_the_training(tmp_path):
    nowhere = str(tmp_path / "no" / "such" / "folder" / "receipt.json")
    done = CliRunner().invoke(cli, ["smoke", recipe(tmp_path, "*-"), "--receipt", nowhere])
    assert done.exit_code == ExitCode.REFUSED
    assert "there is no folder" in done.output
    assert "training" not in done.output


def test_a_megatron_that_the_runtime_is_not_for_is_refused_by_its_version(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_seams.runtime.MEGATRON_CORE", "<0.1")
    done = CliRunner().invoke(cli, ["smoke", recipe(tmp_path, "*-")])
    assert done.exit_code == ExitCode.ENVIRONMENT
    assert "the runtime is for <0.1" in done.output


def test_without_torch_the_command_says_what_to_install(tmp_path, monkeypatch):
    import megatron_seams.cli.smoke as module

    monkeypatch.setattr(module, "_importable", lambda name: name != "torch")
    done = CliRunner().invoke(cli, ["smoke", recipe(tmp_path, "*-")])
    assert done.exit_code == ExitCode.ENVIRONMENT
    assert "SEAM-B06" in done.output
    assert "install torch" in done.output
