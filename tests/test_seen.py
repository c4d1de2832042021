"""Text of plugins and files is seen in every output, and obeyed by nothing."""

import io
import json
import os
import unicodedata
from pathlib import Path
from typing import cast

import pytest

from megatron_seams.cli.seen import Seen, seen, seen_json
from seam_support import install_plugin, manifest_table, registry

#: Clears a screen, turns text round, hides text, and rings.
EVIL = "a\x1b[2J\x1b]0;title\x07\u202eb\u2066c\u200b\x9b1m\r\u2028d\x00"
COMMANDS = ("::error file=x::y", "  ::set-output name=x::y", "##[error]y", "z ##vso[task.x]y")


def test_whatever_is_not_seen_is_escaped() -> None:
    hidden = [
        chr(code)
        for code in range(0x110000)
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp") and code not in (9, 10)
    ]
    shown = [seen(char) for char in hidden]
    kept = [f"{ord(char):x}" for char, text in zip(hidden, shown, strict=True) if char == text]
    # Marks of scripts that a font draws as part of a letter.
    assert set(kept) <= {"890", "891", "8e2", *(f"{code:x}" for code in range(0x13430, 0x13440))}
    assert seen("é \t☃\n𝄞") == "é \t☃\n𝄞"
    assert seen("\x1b\u202e\U000e0001\udcff") == r"\x1b\u202e\U000e0001\udcff"
    # A variant of the letter before it, which Python counts as printable.
    assert seen("a\U000e0100") == r"a\U000e0100"


@pytest.mark.parametrize("text", [EVIL, *COMMANDS, "\U000e0041\udcff##["])
def test_json_says_the_same_and_hides_nothing(text: str) -> None:
    made = seen_json(json.dumps({"a": text}, ensure_ascii=False))
    assert json.loads(made) == {"a": text}
    assert seen(made) == made
    assert "##[" not in made
    made.encode()


def written(*parts: str, styles: bool = False) -> str:
    made = io.StringIO()
    stream = Seen(cast("io.TextIOWrapper", made), styles=styles)
    for part in parts:
        stream.write(part)
    return made.getvalue()


def is_command(output: str) -> bool:
    """Whether GitHub or Azure take a line for a command."""
    return any(
        line.lstrip().startswith("::") or "##[" in line or "##vso[" in line
        for line in output.splitlines()
    )


@pytest.mark.parametrize("text", COMMANDS)
def test_no_line_is_a_command_however_it_is_written(text: str) -> None:
    assert is_command(text)
    for parts in ([text], ["good\n", text], [*text], [" ", text], [f"good\n{text}\ngood\n"]):
        for styles in (False, True):
            made = written(*parts, styles=styles)
            assert not is_command(made), made
            assert made.replace("\\", "") == "".join(parts)
    assert written("a::b ## [x]\n") == "a::b ## [x]\n"


def test_a_console_may_style_and_nobody_else() -> None:
    styles = "\x1b[1;31ma\x1b[0m\x1b]8;id=1;https://x.org\x1b\\b\x1b]8;;\x1b\\\x1b[2K\n"
    assert written(styles, styles=True) == styles
    assert "\x1b" not in written(styles)
    assert "\x1b" not in written("\x1b]0;title\x07\x1bc", styles=True)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Plugins whose every text is hostile, one of them broken, and a file name in no encoding."""
    site = tmp_path / "site"
    for name, text in (("evil", EVIL), ("mean", "\n".join(["x", *COMMANDS]))):
        table = manifest_table(name, f"family_{name}", meaning=f"What {text}")
        table["seam"]["summary"] = text
        install_plugin(site, f"acme-{name}", {f"acme_{name}": table})
    broken = manifest_table("broken")
    broken["seam"][f"k{COMMANDS[0]}\n{COMMANDS[0]}{EVIL}"] = EVIL
    broken["seam"]["owner"] = f"\n{COMMANDS[0]}\n{COMMANDS[2]}{EVIL}"
    install_plugin(site, "acme-broken", {"acme_broken": broken})
    install_plugin(site, "acme-odd", {}, entry_points={f"{COMMANDS[2]}\x1b[2J": f"a\u202e{EVIL}"})
    Path(os.fsdecode(os.fsencode(site) + b"/\xff")).mkdir()
    return site


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--owners"),
        ("list", "--json"),
        ("resolve", f"M{COMMANDS[0]}{EVIL.replace(chr(0), '')}"),
        ("resolve", "M", "--json"),
        ("explain", f"x\n{COMMANDS[0]}\x1b[2J"),
        ("check",),
        ("check", "--format", "json"),
        ("check", "--format", "github"),
        ("check", "--format", "sarif"),
        ("verify", f"\n{COMMANDS[0]}\x1b[2J"),
        ("--no-such\n::error::x\x1b[2J",),
    ],
)
def test_no_output_of_the_command_line_obeys(
    arguments: tuple[str, ...], site: Path, tmp_path: Path
) -> None:
    for variables in ({}, {"FORCE_COLOR": "1", "COLUMNS": "60"}):
        done = registry(*arguments, path=[site], cwd=tmp_path, **variables)
        assert done.returncode in (0, 1, 2)
        assert "Traceback" not in done.stderr
        output = done.stdout + done.stderr
        assert not {*"\x07\x00\x9b\r\u202e\u2066\u200b\u2028"} & {*output}
        for sequence in ("\x1b[2J", "\x1b]0"):
            assert sequence not in output
        if not variables:
            assert "\x1b" not in output
        ours = "github" in arguments
        if ours:
            lines = done.stdout.splitlines()
            assert lines
            assert all(
                line.startswith(("::error file=", "::error title=", "::warning ")) for line in lines
            )
            assert not is_command("\n".join(line.lstrip(":") for line in lines))
        assert not is_command(done.stderr if ours else output)
        if {"--json", "json", "sarif"} & {*arguments}:
            json.loads(done.stdout)


def test_the_page_of_the_report_hides_nothing(site: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    registry("report", "--out", page, path=[site], cwd=tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "What a" in text
    assert seen(text) == text
