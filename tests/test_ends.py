"""How the program ends where the operating system does not let it go on."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from megatron_seams import cli
from seam_support import registry

PROGRAM = [sys.executable, "-m", "megatron_seams"]


def run(arguments: str, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """The program in a shell, where ``REGISTRY`` stands for it."""
    arguments = arguments.replace("REGISTRY", shlex.join(PROGRAM))
    settings = {**os.environ, **variables}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", arguments],
        cwd=cwd,
        env=settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("REGISTRY list --json | true", "has closed it before its end"),
        ("REGISTRY list | true", "has closed it before its end"),
        ("REGISTRY list --json >/dev/full", "No space left on device"),
        ("REGISTRY list >/dev/full", "No space left on device"),
        ("REGISTRY --help >/dev/full", "No space left on device"),
        ("mkdir gone && cd gone && rmdir ../gone && REGISTRY check", "directory is gone"),
    ],
)
def test_it_says_why_in_one_line_and_exits_with_3(command: str, says: str, tmp_path: Path) -> None:
    done = run(command, tmp_path)
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("registry: ")
    assert says in line


def test_a_message_that_cannot_be_written_is_still_an_exit_code(tmp_path: Path) -> None:
    done = run("REGISTRY resolve MQ >/dev/full 2>/dev/full", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    done = run("REGISTRY resolve MQ 2>&1 | true", tmp_path)
    assert (done.returncode, done.stdout) == (3, "")


def test_an_ascii_locale_is_served(tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = run("REGISTRY list --owners && REGISTRY resolve 'M\u00e9'", tmp_path, **ascii_only)
    assert done.returncode == 2
    assert "SEAM-P02" in done.stderr
    assert (done.stdout + done.stderr).isascii()


def test_an_interruption_has_the_code_that_a_shell_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**_: object) -> None:
        raise click.Abort

    monkeypatch.setattr(cli.cli, "main", interrupted)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "registry: interrupted\n"


def test_the_version_has_a_short_option(tmp_path: Path) -> None:
    assert registry("-V", cwd=tmp_path, code=0).stdout.startswith("registry, version ")
