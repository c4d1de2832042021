"""A seam outside this repository: docs/write-a-seam.md from top to bottom, in a fresh environment.

Every command of the page is run and every file on it written, in their order. Its family is one
that core has never heard of and its recipe maps a token to it; nothing in core changes.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from linked_environment import link_environment

pytestmark = [pytest.mark.megatron, pytest.mark.install]

#: For a kit that another command has run as a user does, with torch's compiler in each process.
_WITHOUT_COMPILER = {"TORCHDYNAMO_DISABLE": "1"}
#: The kit by its option runs the rules that the package's own suite has run; those over two ranks,
#: each a process that imports Megatron, are not run again.
_ON_ONE_RANK = {"PYTEST_ADDOPTS": "-k 'not two_ranks and not fp8'"}
_SETTINGS = {"pytest seam-kda": _WITHOUT_COMPILER, "pytest --seam kda": _ON_ONE_RANK}

_BLOCK = re.compile(r"^```(console|toml|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@attrs.frozen
class Command:
    """A line after a ``$``."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


@attrs.frozen
class File:
    """A block whose first line names a file."""

    path: str
    text: str


def steps(page: str) -> Iterator[Command | File]:
    """The steps of the page, in order."""
    for kind, block in _BLOCK.findall(page):
        if kind == "console":
            for line in block.splitlines():
                if line.startswith("$ "):
                    yield Command(tuple(shlex.split(line[2:])))
        elif (first := block.partition("\n"))[0].startswith("# "):
            yield File(first[0].removeprefix("# "), first[2])


@attrs.frozen
class Fresh:
    """A virtual environment that holds core's wheel and none of the workspace's plugins."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    def run(self, command: Command, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the page; what it installs needs nothing that is not there."""
        tool, *rest = command.words
        words = [str(self.bin / tool), *rest]
        if tool == "pip":
            uv = [sys.executable, "-m", "uv", "pip"]
            words = [*uv, rest[0], "--python", str(self.bin / "python"), "--quiet", *rest[1:]]
            words.append("--no-deps")
        elif tool == "pytest":
            words = [str(self.bin / "python"), "-m", "pytest", *rest]
        settings = {**os.environ, "PYTHONPATH": "", "VIRTUAL_ENV": str(self.bin.parent)}
        settings.pop("TORCHDYNAMO_DISABLE", None)  # no reader has it (see the Makefile)
        return subprocess.run(
            words,
            cwd=self.folder,
            env=settings | variables,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def fresh(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """The environment. Torch, Megatron and the other distributions are linked into it.

    They would be gigabytes to install, and minutes to compile; the workspace's own are left out.
    """
    made = Fresh(tmp_path_factory.mktemp("outside"))
    link_environment(made.folder / "venv", left_out=lambda name: "megatron_seams" in name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
    subprocess.run(
        [*build, made.folder / "dist", repository / "core"], check=True, capture_output=True
    )
    (wheel,) = (made.folder / "dist").glob("*.whl")
    done = made.run(Command(("pip", "install", str(wheel))))
    assert done.returncode == 0, done.stderr
    return made


def test_the_page_holds_from_top_to_bottom(repository: Path, fresh: Fresh) -> None:
    page = (repository / "docs" / "write-a-seam.md").read_text(encoding="utf-8")
    printed: dict[str, str] = {}
    written: list[str] = []
    for step in steps(page):
        if isinstance(step, File):
            file = fresh.folder / step.path
            assert file.parent.is_dir(), step.path
            file.write_text(step.text, encoding="utf-8")
            written.append(step.path)
            continue
        done = fresh.run(step, **_SETTINGS.get(str(step), {}))
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
        assert "leaked" not in done.stderr, step  # as extension modules say at the end of a process
        printed[str(step)] = done.stdout

    # The page rewrites only what the author fills in.
    package = "seam-kda/src/seam_kda"
    assert written == [
        *(f"{package}/{name}" for name in ("seam.toml", "plugin.py", "mixer.py")),
        "with-kda.toml",
    ]
    (line,) = [it for it in printed["registry list --owners"].splitlines() if it.startswith("kda")]
    assert "experiment" in line
    assert "@my-team/attention" in line
    assert "experiment 2" in printed["registry resolve with-kda.toml"]
    assert "2 steps" in printed["registry smoke with-kda.toml --steps 2 --save proof"]
    assert _SETTINGS.keys() <= printed.keys()
    for kit in _SETTINGS:
        assert re.search(r"\d\d passed", printed[kit]), printed[kit]
        assert not re.search(r"failed|error", printed[kit].splitlines()[-1])
    assert "check: 0 errors" in printed["registry check seam-kda"]


def test_it_is_refused_until_the_recipe_names_the_experiment(fresh: Fresh) -> None:
    recipe, silent = fresh.folder / "with-kda.toml", fresh.folder / "silent.toml"
    named = 'experiments = ["kda"]'
    assert named in recipe.read_text()
    silent.write_text(recipe.read_text().replace(named, ""))
    done = fresh.run(Command(("registry", "resolve", "silent.toml")))
    assert done.returncode == 2
    assert "SEAM-R05" in done.stderr


def test_the_package_of_a_feature_passes_the_kit_as_it_is(fresh: Fresh) -> None:
    for command in (
        "registry new mem --family engram --owner @my-team/memory",
        "pip install -e seam-mem[test]",
        "pytest seam-mem",
    ):
        done = fresh.run(Command(tuple(shlex.split(command))), **_WITHOUT_COMPILER)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert re.search(r"\d\d passed", done.stdout)
