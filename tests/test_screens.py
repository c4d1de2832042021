"""The commands' drawings fit the screen, at three widths and on a pipe."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

import screens
from megatron_seams.cli.rows import Row, draw_rows
from megatron_seams.cli.screen import console, draw_wrapped, wrapped
from seam_support import registry

#: What is never wrapped, so that it can be copied.
WHOLE = ("$ registry ", "  in: ", "  next: ", "  see: ")


@pytest.mark.parametrize("width", screens.WIDTHS)
def test_the_screens_are_those_that_were_looked_at(width: int, tmp_path: Path) -> None:
    """After a wanted change: ``python tests/screens.py``, and look at the difference."""
    kept = screens.FOLDER / str(width)
    drawn = screens.screens(width, tmp_path)
    assert {f"{name}.txt" for name in drawn} == {file.name for file in kept.iterdir()}
    for name, text in drawn.items():
        assert text == (kept / f"{name}.txt").read_text(encoding="utf-8"), name


def test_the_screens_fit_and_end_without_blanks() -> None:
    seen = 0
    for file in sorted(screens.FOLDER.glob("*/*.txt")):
        width = int(file.parent.name)
        for line in file.read_text(encoding="utf-8").splitlines():
            assert line == line.rstrip(), (file, line)
            assert len(line) <= width or line.startswith(WHOLE), (file, line)
            seen += 1
    assert seen > 500


@pytest.mark.parametrize("width", screens.WIDTHS)
def test_family_state_provider_and_owner_are_whole_at_every_width(width: int) -> None:
    text = (screens.FOLDER / str(width) / "list-owners.txt").read_text(encoding="utf-8")
    rows = re.split(r"\n(?=\S)", text)
    (latent,) = (row for row in rows if row.startswith("mla "))
    for word in ("superseded", "native +", "seam latent 1.0", "NVIDIA/Megatron-LM"):
        assert word in latent
    assert re.search(r"(?<!\S)@acme/attention(?!\S)", latent)


def test_on_a_pipe_lines_are_bounded_and_end_without_blanks(tmp_path: Path) -> None:
    for arguments in (("list", "--owners"), ("resolve", "MEM*", "--depth", "400"), ("surface",)):
        done = registry(*arguments, cwd=tmp_path)
        lines = done.stdout.splitlines()
        assert len(lines) > 5
        # The folder of the Megatron is one word.
        assert max(len(line) for line in lines if "/" not in line or " " in line) <= 100
        assert lines == [line.rstrip() for line in lines]


def drawn(width: int, *rows: Row) -> list[str]:
    out = Console(width=width, soft_wrap=True, color_system=None)
    with out.capture() as captured:
        draw_rows(out, ("name", "who", "note"), rows)
    return captured.get().splitlines()


def test_what_does_not_fit_beside_goes_below_whole() -> None:
    row = Row(cells=["a", ["@one/team", "@another/team"]], prose=["some words"], below=["more"])
    assert drawn(40, row) == [
        "name  who            note",
        "a     @one/team      some words",
        "      @another/team",
        "    more",
    ]
    assert drawn(25, row)[2:] == ["      @another/team", "    some words", "    more"]
    assert drawn(20, row)[1:4] == ["a     @one/team", "      @another/team", "    some words"]
    assert drawn(12, row)[1:] == [
        "a",
        "    who:",
        "      @one/team,",
        "      @another/team",
        "    some",
        "      words",
        "    more",
    ]
    assert drawn(20) == ["name  who  note"]


def test_text_is_wrapped_between_words_and_by_what_the_terminal_shows() -> None:
    out = Console(width=12, soft_wrap=True, color_system=None)
    with out.capture() as captured:
        draw_wrapped(out, "one two three-hundred-and-four \uff26\uff35\uff2c\uff2c w", hanging=2)
    # A full-width letter takes two columns.
    assert captured.get().splitlines() == [
        "one two",
        "  three-hundred-and-four",
        "  \uff26\uff35\uff2c\uff2c w",
    ]


def test_a_long_line_is_cut_into_all_its_parts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is made in the time of the whole line: part by part takes the square of its length."""
    cuts: list[int] = []
    divide = Text.divide

    def counted(line: Text, offsets: Iterable[int]) -> Any:
        cuts.append(len(line))
        return divide(line, offsets)

    monkeypatch.setattr(Text, "divide", counted)
    line = Text(", ".join(str(number) for number in range(5000)))
    parts = list(wrapped(line, 80, 76))
    assert cuts == [len(line)]
    assert " ".join(part.plain for part in parts) == line.plain
    assert all(part.cell_len <= 80 for part in parts)


def test_the_width_of_a_pipe_is_what_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, width in {"72": 72, "3": 20, "": 100, "wide": 100}.items():
        monkeypatch.setenv("COLUMNS", value)
        assert console().width == width
