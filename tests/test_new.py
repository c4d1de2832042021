"""`registry new`: a package that is right from the start, and nothing that its author must undo."""

import datetime
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_seams.errors import ExitCode, Refusal
from megatron_seams.governance.gate import check
from megatron_seams.governance.workspace import Workspace
from megatron_seams.planning.resolver import resolve
from megatron_seams.runtime.plugins import load_plugins
from megatron_seams.scaffold import NewSeam
from megatron_seams.seams.manifest import CAPABILITIES
from megatron_seams.seams.source_trees import discover_in
from seam_support import environment, recipe, registry

CASES = [
    ("kda", "kda", "block"),
    ("my_kda", "recurrent", "block"),
    ("faster", "mla", "block"),
    ("mem", "ngram", "feature"),
    ("wide_memory", "wide", "feature"),
]


def new(name: str, family: str, kind: Any, owner: str = "@my-team/attention") -> NewSeam:
    day = datetime.date.today()
    return NewSeam(name=name, family=family, owner=owner, kind=kind, introduced=day)


@pytest.mark.parametrize(("name", "family", "kind"), CASES)
def test_what_it_writes_is_a_seam_on_trial_without_a_finding(
    name: str, family: str, kind: str, tmp_path: Path
) -> None:
    project = new(name, family, kind).write(tmp_path)
    found = discover_in([project])
    assert found.broken == ()
    (seam,) = found.seams
    manifest = seam.manifest
    assert (seam.name, seam.family, manifest.kind) == (name, family, kind)
    assert seam.owner == "@my-team/attention"
    assert manifest.experiment
    assert not any(manifest.supports[capability] for capability in CAPABILITIES)
    # Where this Megatron builds the family itself the new seam is superseded from the start.
    gate = check(environment(seam), Workspace())
    codes = [verdict.finding.code for verdict in gate.verdicts]
    unwritten = 1 if manifest.family is None else 2
    assert codes == [*(["SEAM-D09"] if family == "mla" else []), *["SEAM-D11"] * unwritten]
    assert gate.exit_code == (ExitCode.FINDINGS if family == "mla" else ExitCode.OK)


@pytest.mark.parametrize(("name", "family", "kind"), CASES)
def test_what_it_writes_needs_no_formatter_and_no_linter(
    name: str, family: str, kind: str, tmp_path: Path
) -> None:
    new(name, family, kind).write(tmp_path)
    ruff = [sys.executable, "-m", "ruff"]
    settings = ["--isolated", "--line-length", "100"]
    for command in (["check", "--select", "E,F,I,W,B,UP"], ["format", "--check"]):
        done = subprocess.run(
            [*ruff, *command, *settings, "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("name", "family", "kind"), CASES)
def test_it_holds_what_its_author_must_fill_in_and_little_else(
    name: str, family: str, kind: str
) -> None:
    files = new(name, family, kind).files()
    lines = sum(len(text.splitlines()) for text in files.values())
    assert lines < 150
    assert len(files) == 6
    block = files[f"src/seam_{name}/{'mixer' if kind == 'block' else 'module'}.py"]
    assert "To be written: the formula" in block
    manifest = files[f"src/seam_{name}/seam.toml"]
    assert len(re.findall("To be written", manifest)) == (3 if "[family]" in manifest else 2)
    assert "To be written" not in files[f"src/seam_{name}/plugin.py"]


@pytest.mark.parametrize(
    ("name", "family", "owner", "keys"),
    [
        ("Kda", "kda", "@x/y", {"seam.name"}),
        ("kda", "a b", "@x/y", {"seam.family", "family.name"}),
        ("kda", "kda", "team", {"seam.owner"}),
        ("../kda", "kda", "@x/y", {"seam.name"}),
        ("k" + '"' + "\nx = 1", "kda", "@x/y", {"seam.name"}),
        ("kda", "kda", '@x"\nstatus = "seam', {"seam.owner"}),
    ],
)
def test_what_no_manifest_may_say_is_refused_and_nothing_is_written(
    name: str, family: str, owner: str, keys: set[str], tmp_path: Path
) -> None:
    with pytest.raises(Refusal) as refused:
        new(name, family, "block", owner).write(tmp_path)
    assert {fault.key for fault in refused.value.reasons} == keys
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_it_and_says_what_is_left_to_do(tmp_path: Path) -> None:
    asked = ("new", "kda", "--family", "kda", "--owner", "@my-team/attention")
    done = registry(*asked, cwd=tmp_path, code=0)
    assert (tmp_path / "seam-kda" / "src" / "seam_kda" / "mixer.py").is_file()
    assert "/seam-kda/ @my-team/attention" in done.stdout
    assert "seam-kda is there already" in registry(*asked, cwd=tmp_path, code=2).stderr
    done = registry("new", "kda", "--family", "mla", "--owner", "@x", "--feature", code=2)
    assert "mla is a block" in done.stderr
    registry("new", "mem", "--family", "engram", "--owner", "@x/y", "--out", "in", cwd=tmp_path)
    assert (tmp_path / "in" / "seam-mem" / "src" / "seam_mem" / "module.py").is_file()


@pytest.mark.megatron
@pytest.mark.parametrize(("name", "family", "kind"), CASES[:2] + CASES[3:])
def test_its_plugin_is_what_its_manifest_says(
    name: str, family: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = new(name, family, kind).write(tmp_path)
    monkeypatch.syspath_prepend(project / "src")
    (seam,) = discover_in([project]).seams
    asked: dict[str, Any] = {"policy": {"experiments": [name]}}
    if kind == "block":
        asked["tokens"] = {"K": family}
    else:
        asked["features"] = [{"family": family}]
    plan = resolve(recipe("MK" if kind == "block" else "MM", **asked), environment(seam))
    assert [chosen.name for chosen in plan.seams] == [name]
    assert load_plugins(plan.seams).options == {name: None}
