"""Command lines that cannot be read, and paths that cannot be used: a code and a next step."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from megatron_seams.base.files import in_words
from megatron_seams.cli import cli
from megatron_seams.cli import main as main_of_the_command
from megatron_seams.errors import Refusal
from seam_support import run_python, toml, unprivileged


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> str:
    """The message of a command line, as the program prints it."""
    monkeypatch.setattr("sys.argv", ["registry", *arguments])
    monkeypatch.setenv("COLUMNS", "200")  # no message is wrapped
    with pytest.raises(SystemExit) as ended:
        main_of_the_command()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, ""), printed
    assert "Traceback" not in printed.err
    message: str = printed.err
    return message


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("lsit",), "No such command 'lsit'. Did you mean list?"),
        (("frobnicate",), "No such command 'frobnicate'."),
        (("list", "--owner"), "No such option '--owner'."),
        (("resolve",), "Missing argument 'PATTERN|RECIPE|config.json'."),
        (("resolve", "MM", "--depth", "0"), "Invalid value for '--depth'"),
        (("accept", "receipt.json"), "Missing option '--reason'."),
        # Where a pattern may begin with "-", an option that is not there is none.
        (("resolve", "--layer", "MM"), "No such option '--layer'."),
        (("resolve", "--receit=here.json", "MM"), "No such option '--receit'."),
        (("explain", "--recipes", "here.toml", "M"), "No such option '--recipes'."),
        (("args", "MM", "--line"), "No such option '--line'."),
        (("preview", "wheel.whl", "--jsn"), "No such option '--jsn'."),
        (("report", "--output", "here.html"), "No such option '--output'."),
        (("smoke", "MM", "--step", "2"), "No such option '--step'."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_line_that_cannot_be_read_has_a_code_and_a_next_step(
    arguments: tuple[str, ...],
    found: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, *rest = refused(monkeypatch, capsys, *arguments).splitlines()
    command = "registry" if "command" in found else f"registry {arguments[0]}"
    assert first == f"[SEAM-A02] the command line of {command}"
    assert rest[0].startswith(f"  found: {found}")
    assert rest[1].startswith(f"  next: follow its usage: {command} [OPTIONS]")
    assert rest[2:] == [f"  see: {command} --help", "refused: 1 reason"]


@pytest.mark.usefixtures("folder")
def test_an_option_that_is_nearly_one_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "'--layers'" in refused(monkeypatch, capsys, "resolve", "--layer", "MM")
    assert "'--receipt'" in refused(monkeypatch, capsys, "smoke", "--receit", "here.json", "MM")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "arguments", [("--", "--strange"), ("--dialect", "--strange", "--", "M"), ("--M",)]
)
def test_what_only_looks_like_an_option_is_none(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, ["resolve", *arguments])
    assert "No such option" not in done.output
    assert done.exit_code in (0, 2)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "command", [("resolve", "MM", "--receipt"), ("report", "MM", "--out")], ids=lambda c: c[0]
)
def test_a_file_in_a_folder_that_is_not_there_is_refused_by_its_own_name(
    command: tuple[str, ...],
) -> None:
    done = CliRunner().invoke(cli, [*command, "nowhere/file"])
    assert done.exit_code == 2
    assert (
        "in: nowhere/file\n  found: it cannot be written: there is no folder nowhere\n"
        in done.output
    )
    assert ".lock" not in done.output


@pytest.mark.parametrize("kind", [".toml", ".json"])
def test_a_link_that_leads_nowhere_is_not_meant_by_its_own_name(folder: Path, kind: str) -> None:
    (folder / f"model{kind}").symlink_to(f"gone{kind}")
    for command in (["resolve", f"model{kind}"], ["verify", f"model{kind}"]):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 2
        assert f"it is a link to gone{kind}, which is not there" in done.output
        assert "did you mean" not in done.output


def test_a_folder_that_may_not_be_read_is_a_coded_refusal() -> None:
    CliRunner().invoke(cli, ["resolve", "MM"])  # whatever it imports, while that can be read
    with tempfile.TemporaryDirectory() as name:
        closed = Path(name) / "closed"
        closed.mkdir()
        Path(name).chmod(0o755)
        closed.chmod(0)
        for path in (closed, closed / "model.toml", closed / "config.json"):
            with unprivileged():
                done = CliRunner().invoke(cli, ["resolve", str(path)])
            assert (done.exit_code, "SEAM-" in done.output) == (2, True), done.output
            assert "next: " in done.output
            assert "Errno" not in done.output


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTDIR, errno.ELOOP])
def test_a_path_that_the_system_refuses_is_a_coded_refusal(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(number, os.strerror(number), "closed/file")

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("megatron_seams.cli.resolve.asked_model", refuse)
    done = CliRunner().invoke(cli, ["resolve", "MM"], prog_name="registry")
    assert done.exit_code == 2
    assert "[SEAM-A02] a path that registry resolve can use\n  in: closed/file" in done.output
    assert f"  found: {os.strerror(number)}\n" in done.output


def test_the_words_of_the_system_have_no_number() -> None:
    assert in_words(PermissionError(errno.EACCES, "Permission denied", "x")) == "Permission denied"
    assert in_words(TimeoutError("it took too long")) == "it took too long"
    assert in_words(ValueError("what is wrong")) == "what is wrong"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("surface", "nowhere.whl"), 3, "found: there is no such file or folder\n"),
        (("surface", "."), 3, "found: no folder, wheel or sdist with megatron/core in it\n"),
        (("check", "nowhere"), 1, "found: there is no such folder or file\n"),
        (("verify", "."), 2, "next: correct the path, or write it anew from its recipe\n"),
        (("resolve", "M", "--depth", "1000000000"), 2, "and not from 1 to 100000\n"),
    ],
)
def test_what_is_named_and_is_not_there_or_too_large_is_told(
    arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = CliRunner().invoke(cli, arguments)
    assert (done.exit_code, says in done.output) == (code, True), done.output


def test_one_layer_is_no_layers(folder: Path) -> None:
    table = {"schema": 1, "model": {"name": "one", "pattern": "-"}}
    file = folder / "one.toml"
    file.write_text(toml({**table, "parallelism": {"pipeline-parallel": 2}}))
    done = CliRunner().invoke(cli, ["resolve", str(file)])
    assert "found: 1 layer does not divide evenly\n" in done.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--seam", "x", "--seam-options", "nowhere.toml"), "[SEAM-C01] options of seam 'x' for"),
        (("--seam", "x", "--seam-megatron", "nowhere"), "[SEAM-S01] the megatron-core at nowhere"),
        (("--seam-options", "nowhere.toml"), "--seam-options goes with --seam NAME"),
    ],
)
def test_files_of_the_kit_that_cannot_be_used_are_told_once(
    folder: Path, options: tuple[str, ...], says: str
) -> None:
    done = run_python("-m", "pytest", *options, cwd=folder, code=4)
    assert f"ERROR: {says}" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[other]\n", "other"),
        ("seams = 3\n", "seams"),
        ("[seams]\nx = 3\n", "seams.x"),
        ("[seams.y]\n", "seams.y"),
        ("megatron = []\n", "megatron"),
        ("[megatron\n", None),
    ],
)
def test_options_for_the_kit_are_two_tables(tmp_path: Path, text: str, key: str | None) -> None:
    from megatron_seams.runtime.conformance.subject import read_fragment

    file = tmp_path / "options.toml"
    file.write_text(text)
    with pytest.raises(Refusal) as refused:
        read_fragment(file, "x")
    (reason,) = refused.value.reasons
    assert (reason.file, reason.key) == (str(file), key)
    file.write_text("[seams.x]\nheads = 2\n[megatron]\nhidden_size = 64\n")
    assert read_fragment(file, "x") == ({"heads": 2}, {"hidden_size": 64})
