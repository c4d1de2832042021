"""`registry doctor`: what is installed here, and what a model would be built with."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

import screens
from megatron_seams.cli import cli
from megatron_seams.cli import doctor as module
from megatron_seams.errors import MegatronMissing
from megatron_seams.upstream.surface import NativeSurface
from seam_support import environment, make_seam


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a policy; nothing is imported to look at the machine."""
    (tmp_path / "CODEOWNERS").write_text("* @acme/all\n")
    policy = '[tool.megatron-seams.policy]\nmegatron-core = ">=0.18"\nallow = ["kda"]\n'
    (tmp_path / "pyproject.toml").write_text(policy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "read_environment", lambda: environment(make_seam()))
    monkeypatch.setattr(module, "_machine", lambda _: (None, ()))
    return tmp_path


def asked(*options: str, code: int) -> Any:
    done = CliRunner().invoke(cli, ["doctor", *options], prog_name="registry")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if options else done.output


def valid(repository: Path, found: Any) -> Any:
    schema = json.loads((repository / "docs/schema/doctor.schema.json").read_text())
    jsonschema.validate(found, schema)
    return found


def test_it_says_what_there_is_and_which_policy_applies(where: Path, repository: Path) -> None:
    printed = asked(code=0)
    assert "megatron-core 0.19.2" in printed
    assert "seam 'kda' of acme-kda 1.0 (owner @acme/layers): kda" in printed
    assert f"workspace: {where / 'pyproject.toml'}" in printed.replace("\n    ", " ")
    assert "releases trained on: >=0.18" in printed
    assert "seams allowed: kda" in printed
    found = valid(repository, asked("--json", code=0))
    assert found["policy"]["codeowners"] == str(where / "CODEOWNERS")
    assert found["megatron_core"]["symbols"]["M"] == "mamba"


@pytest.mark.usefixtures("where")
def test_findings_and_a_missing_megatron_decide_the_exit_code(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "read_environment", lambda: screens.world("0.19.2"))
    found = valid(repository, asked("--json", code=1))
    assert found["broken"] == ["gated_memory"]
    fault = MegatronMissing(asked="a megatron-core", found="there is none", next="install it")
    none = environment(native=NativeSurface(), faults=[fault])
    monkeypatch.setattr(module, "read_environment", lambda: none)
    printed = asked(code=3)
    assert "megatron-core none" in printed
    assert "no model can be built here" in printed
    valid(repository, asked("--json", code=3))


def test_a_broken_workspace_is_a_finding_among_the_others(where: Path, repository: Path) -> None:
    (where / "pyproject.toml").write_text("[tool.megatron-seams]\ncolour = 1\n")
    found = valid(repository, asked("--json", code=1))
    assert [finding["code"] for finding in found["findings"]] == ["SEAM-W01"]
    assert found["policy"]["workspace"] is None


@pytest.mark.megatron
def test_the_machine_is_the_one_that_builds(repository: Path) -> None:
    from megatron_seams.runtime.backends.backend import choose_backend
    from megatron_seams.runtime.machine import read_machine

    machine = read_machine()
    backend = choose_backend()
    assert machine.backend == backend.name
    assert machine.not_taken.keys() == {"transformer_engine", "local"} - {backend.name}
    for family in ("mamba", "mlp"):
        assert machine.cannot.get(family) == backend.why_not(family)
    done = CliRunner().invoke(cli, ["doctor", "--json"])
    assert valid(repository, json.loads(done.stdout))["machine"]["backend"] == backend.name
