"""The screen: how wide it is, and text that fits it.

rich is imported where something is drawn: a program that asks for JSON does not wait for it.
"""

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

#: The columns of a pipe or a file, unless COLUMNS says otherwise.
_PIPE: Final = 100
#: No screen is taken to be narrower.
_LEAST: Final = 20


def console(*, error: bool = False) -> "Console":
    """A console as wide as its terminal, or as COLUMNS says; for a pipe 100 columns wide.

    A line that is printed as it is stays one line: paths and commands can be copied.
    """
    from megatron_seams.cli.seen_console import made_seen

    made = made_seen(error=error, highlight=False, soft_wrap=True)
    if not made.is_terminal and not has_width(made):
        made = made_seen(error=error, highlight=False, soft_wrap=True, width=_PIPE)
    if made.width < _LEAST:
        made = made_seen(error=error, highlight=False, soft_wrap=True, width=_LEAST)
    # rich's own ends the program with 1, the code of findings.
    made.on_broken_pipe = _raise_again  # type: ignore[method-assign]
    return made


def _raise_again() -> None:
    raise


def has_width(out: "Console") -> bool:
    """Whether someone looks: a terminal, or a width that the user has set."""
    return out.is_terminal or os.environ.get("COLUMNS", "").isdigit()


def draw(out: "Console", line: "Text") -> None:
    """Print one line without blanks at its end."""
    line = line.copy()
    line.rstrip()
    out.print(line)


def draw_wrapped(out: "Console", text: "str | Text", *, indent: int = 0, hanging: int = 0) -> None:
    """Print text over the full width, broken between words only.

    Args:
        out: The console.
        text: The text; its own lines stay lines.
        indent: The blanks before its first line.
        hanging: The blanks before each further line, beyond ``indent``.
    """
    from rich.text import Text

    whole = Text(text) if isinstance(text, str) else text
    for each in whole.split("\n", allow_blank=True):
        parts = wrapped(each, out.width - indent, out.width - indent - hanging)
        for number, part in enumerate(parts):
            draw(out, Text(" " * (indent + (hanging if number else 0))).append_text(part))


def wrapped(line: "Text", first: int, rest: int) -> Iterator["Text"]:
    """The parts of a line, broken between words; a word that is wider than a part stays whole.

    Args:
        line: The line.
        first: The columns of the first part.
        rest: The columns of every other part.
    """
    from rich.cells import cell_len

    # A part of a Text is made in the time of the whole, so that all of them are cut at once.
    cuts = [0, 0]
    room, width = first, 0
    for word in re.finditer(r"\s*\S+", line.plain):
        cells = cell_len(word.group())
        if cuts[-1] > cuts[-2] and width + cells > room:
            bare = word.group().lstrip()
            cuts += [word.end() - len(bare), word.end()]
            room, width = rest, cell_len(bare)
        else:
            cuts[-1] = word.end()
            width += cells
    yield from line.divide(cuts)[1::2]
