"""Rows of cells, fitted to the screen: what does not fit beside goes below, and nothing is cut."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import attrs

from megatron_seams.cli.screen import draw, draw_wrapped, wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_GAP: Final = "  "
#: Prose that has fewer columns left than this goes below.
_LEAST_PROSE: Final = 24
#: The blanks before what stands below a row.
_BELOW: Final = 4


@attrs.frozen(kw_only=True)
class Row:
    """One row.

    Attributes:
        cells: A cell for each column but the last; a cell of several lines is a list of them.
        prose: The last column's text, which may be wrapped; one sentence each.
        below: What always stands below, over the full width.
        style: The style of the cell of each column, by its number.
    """

    cells: Sequence[str | Sequence[str]]
    prose: Sequence[str] = ()
    below: "Sequence[str | Text]" = ()
    styles: dict[int, str] = attrs.field(factory=dict)

    def lines(self, column: int) -> tuple[str, ...]:
        """The lines of one cell."""
        cell = self.cells[column]
        return (cell,) if isinstance(cell, str) else tuple(cell)


def draw_rows(out: "Console", columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Draw rows under their columns' names.

    As many columns as fit stand side by side, each as wide as its widest cell; every further one
    goes below its row with its name, and the prose without one.

    Args:
        out: The console.
        columns: The names of the columns; the last one's is that of the prose.
        rows: The rows.
    """
    from rich.cells import cell_len

    *names, prose = columns
    widths = [
        max(cell_len(text) for text in (name, *(it for row in rows for it in row.lines(at))))
        for at, name in enumerate(names)
    ]
    beside = len(names)
    while beside > 1 and _total(widths[:beside]) > out.width:
        beside -= 1
    left = out.width - _total(widths) - len(_GAP)
    longest = max((cell_len(it) for row in rows for it in row.prose), default=0)
    inline = beside == len(names) and left >= min(longest, _LEAST_PROSE)
    _head(out, names[:beside] + ([prose] if inline else []), widths)
    for row in rows:
        _row(out, row, names, widths[:beside], left if inline else None)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _head(out: "Console", names: Sequence[str], widths: Sequence[int]) -> None:
    from rich.text import Text

    line = Text(style="bold")
    for at, name in enumerate(names):
        line.append(name.ljust(widths[at]) + _GAP if at < len(widths) else name)
    draw(out, line)


def _row(
    out: "Console", row: Row, names: Sequence[str], widths: Sequence[int], left: int | None
) -> None:
    from rich.text import Text

    cells = [[Text(line) for line in row.lines(at)] for at in range(len(widths))]
    if left is not None:
        cells.append([part for text in row.prose for part in wrapped(Text(text), left, left)])
    for number in range(max(len(cell) for cell in cells)):
        line = Text()
        for at, cell in enumerate(cells):
            text = cell[number].plain if number < len(cell) else ""
            line.append(text, style=row.styles.get(at, ""))
            if at < len(widths):
                line.append(" " * (widths[at] - Text(text).cell_len) + _GAP)
        draw(out, line)
    below: list[str | Text] = [
        f"{names[at]}: {', '.join(lines)}"
        for at in range(len(widths), len(names))
        if (lines := [line for line in dict.fromkeys(row.lines(at)) if line != "-"])
    ]
    for told in (*below, *(() if left is not None else row.prose), *row.below):
        draw_wrapped(out, told, indent=_BELOW, hanging=2)
