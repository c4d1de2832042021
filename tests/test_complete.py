"""Completion of a command line in a shell, and that it loads little."""

import json
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

import screens
from megatron_seams.cli import cli, commands
from seam_support import run_python

VARIABLE = "_REGISTRY_COMPLETE"


def completed(line: str) -> list[str]:
    """The completions of a line that ends where the cursor is."""
    *words, begun = line.split(" ")
    found = ShellComplete(cli, {}, "registry", VARIABLE).get_completions(words, begun)
    return [item.value for item in found]


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch) -> None:
    place = "megatron_seams.cli.complete.read_environment"
    monkeypatch.setattr(place, lambda: screens.world("0.19.2"))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("re", ["report", "resolve"]),
        ("explain la", ["latent"]),
        ("explain DS", ["DS_ATTENTION"]),
        ("explain m", ["mla", "mamba", "moe", "mlp", "memory"]),
        ("graduate t", ["trial", "two"]),
        ("new x --family g", ["gdn"]),
        ("new x --family gdn --placement r", ["residual"]),
        ("docs conf", ["conformance"]),
        ("resolve M --dia", ["--dialect"]),
        ("resolve M --dialect n", ["nam"]),
    ],
)
def test_names_are_completed(line: str, found: list[str]) -> None:
    assert completed(line) == found


def test_every_command_is_completed_and_files_are_the_shells_own() -> None:
    assert completed("") == sorted(commands())
    for line in ("resolve rec", "args rec", "smoke rec", "report rec", "preview x rec"):
        (item,) = ShellComplete(cli, {}, "registry", VARIABLE).get_completions(
            line.split()[:-1], "rec"
        )
        assert (item.type, item.value) == ("file", "rec")


def test_a_fault_completes_nothing_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError

    monkeypatch.setattr("megatron_seams.cli.complete.read_environment", broken)
    assert completed("explain m") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_lines_of_the_page_set_completion_up(
    shell: str, repository: Path, tmp_path: Path
) -> None:
    page = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    assert f"{VARIABLE}={shell}_source registry" in page
    program = "import sys; sys.argv[0] = 'registry'; from megatron_seams.cli import main; main()"
    script = run_python("-c", program, cwd=tmp_path, code=0, **{VARIABLE: f"{shell}_source"})
    assert VARIABLE in script.stdout


def test_completing_a_command_loads_none(tmp_path: Path) -> None:
    program = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        "from megatron_seams.cli import main\nmain()"
    )
    variables = {VARIABLE: "bash_complete", "COMP_WORDS": "registry re", "COMP_CWORD": "1"}
    done = run_python("-c", program, cwd=tmp_path, code=0, **variables)
    assert done.stdout.split() == ["plain,report", "plain,resolve"]
    loaded = {name for name in json.loads(done.stderr) if name.startswith("megatron_seams.cli.")}
    assert loaded <= {"megatron_seams.cli.seen"}
