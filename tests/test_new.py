"""`registry new`: a package that is right from the start, and nothing that its author must undo."""

import datetime
import errno
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
from packaging.requirements import Requirement

from megatron_seams import __version__, scaffold
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
    ("mem", "ngram", "embedding"),
    ("wide_memory", "wide", "residual"),
    ("a_name_of_more_than_twenty_letters", "engram", "residual"),
]


def new(name: str, family: str, kind: str, owner: str = "@my-team/attention") -> NewSeam:
    """A new seam; a feature's kind is its placement."""
    day = datetime.date.today()
    placed: Any = {} if kind == "block" else {"placement": kind}
    what: Any = "block" if kind == "block" else "feature"
    return NewSeam(name=name, family=family, owner=owner, kind=what, introduced=day, **placed)


@pytest.mark.parametrize(("name", "family", "kind"), CASES)
def test_what_it_writes_is_a_seam_on_trial_without_a_finding(
    name: str, family: str, kind: str, tmp_path: Path
) -> None:
    project = new(name, family, kind).write(tmp_path)
    found = discover_in([project])
    assert found.broken == ()
    (seam,) = found.seams
    manifest = seam.manifest
    assert (seam.name, seam.family) == (name, family)
    placed = manifest.feature.placement if manifest.feature else "block"
    assert placed == kind
    assert manifest.options
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
    project = new(name, family, kind).write(tmp_path)
    ruff = [sys.executable, "-m", "ruff"]
    settings = ["--isolated", "--line-length", "100"]
    for command in (["check", "--select", "E,F,I,W,B,UP"], ["format", "--check"]):
        done = subprocess.run(
            [*ruff, *command, *settings, "."],
            cwd=project,
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
    assert lines < 270
    assert len(files) == 11
    block = files[f"src/seam_{name}/{'mixer' if kind == 'block' else 'module'}.py"]
    assert "To be written: the formula" in block
    manifest = files[f"src/seam_{name}/seam.toml"]
    assert len(re.findall("To be written", manifest)) == (3 if "[family]" in manifest else 2)
    assert "To be written" not in files[f"src/seam_{name}/plugin.py"]


@pytest.mark.parametrize(("name", "family", "kind"), CASES[::2])
def test_what_it_writes_can_be_published(
    name: str, family: str, kind: str, repository: Path
) -> None:
    files = new(name, family, kind).files()
    project = tomllib.loads(files["pyproject.toml"])["project"]
    core = tomllib.loads((repository / "core" / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == core["requires-python"]
    needed = [Requirement(text) for text in project["dependencies"]]
    needed += [Requirement(text) for text in project["optional-dependencies"]["test"]]
    for each in needed:
        assert each.specifier, each
        if each.name == "megatron-seams":
            # Before 1.0 the minor version is what promises are kept within.
            assert each.specifier.contains(__version__)
            assert not each.specifier.contains("0.99")
    for named in (project["readme"], *project["license-files"]):
        assert files[named].strip()
    assert files[f"src/seam_{name}/py.typed"] == ""
    assert "dist/" in files[".gitignore"]
    assert "registry docs manifest.schema.json" in files["README.md"]


@pytest.mark.parametrize(("name", "family", "kind"), CASES[:1] + CASES[3:5])
@pytest.mark.megatron
def test_its_own_value_test_passes_and_its_options_refuse(
    name: str, family: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's functions, called here: a process of its own would import torch again."""
    project = new(name, family, kind).write(tmp_path)
    monkeypatch.syspath_prepend(project / "src")
    tests = runpy.run_path(str(project / "tests" / "test_values.py"))
    tests["test_options_that_do_not_fit_are_refused"]()
    values = tests["test_the_values_are_those_of_the_formula"]
    for arguments in [{"heads": 1}, {"heads": 4}] if kind == "block" else [{}]:
        values(**arguments)
    for module in [it for it in sys.modules if it.partition(".")[0] == f"seam_{name}"]:
        del sys.modules[module]  # another test writes a package of that name


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


def test_what_cannot_be_written_whole_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def replace(path: Path, text: str) -> None:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        path.write_text(text)

    monkeypatch.setattr(scaffold, "replace_text", replace)
    with pytest.raises(OSError, match="No space"):
        new("kda", "kda", "block", "@x/y").write(tmp_path)
    assert len(written) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_it_and_says_what_is_left_to_do(tmp_path: Path) -> None:
    asked = ("new", "kda", "--family", "kda", "--owner", "@my-team/attention")
    done = registry(*asked, cwd=tmp_path, code=0)
    assert (tmp_path / "seam-kda" / "src" / "seam_kda" / "mixer.py").is_file()
    assert "/seam-kda/ @my-team/attention" in done.stdout
    assert "seam-kda is there already" in registry(*asked, cwd=tmp_path, code=2).stderr
    done = registry("new", "kda", "--family", "mla", "--owner", "@x", "--feature", code=2)
    assert "mla is a block" in done.stderr
    done = registry(
        "new", "k", "--family", "mla", "--owner", "@x", "--placement", "residual", code=2
    )
    assert "--placement" in done.stderr
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
        asked["features"] = [{"family": family, **({"layers": [1]} if kind == "residual" else {})}]
    plan = resolve(recipe("MK" if kind == "block" else "MM", **asked), environment(seam))
    assert [chosen.name for chosen in plan.seams] == [name]
    # Its options have the defaults that its manifest gives them.
    (read,) = load_plugins(plan.seams).options.values()
    declared = seam.manifest.options or {}
    assert attrs.asdict(read) == {key: option.default for key, option in declared.items()}
