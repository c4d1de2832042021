"""The layer strip: a model at a glance, one cell for each layer."""

from collections.abc import Collection, Iterator, Sequence

from rich.console import Console
from rich.text import Text

from megatron_seams.cli.screen import draw, draw_wrapped
from megatron_seams.planning.plan import Plan

_STYLES = {
    "native": "black on green3",
    "seam": "bold white on dark_magenta",
    "experiment": "bold black on orange1",
    "refused": "bold white on red3",
}
#: The marks below the cells, where there are no colours.
_MARKS = {"native": ".", "seam": "^", "experiment": "?", "refused": "x"}
_MOST_CELLS = 60
#: The blanks before the cells, where a row's first number stands.
_INDENT = 7


def plan_states(plan: Plan) -> list[str]:
    """The state of each layer of a plan."""
    return [layer.provider.state for layer in plan.layers]


def refused_states(tokens: str, positions: Collection[int]) -> list[str]:
    """The state of each layer of a refused pattern: ``refused``, or empty for the others."""
    return ["refused" if number in positions else "" for number in range(1, len(tokens) + 1)]


def draw_strip(out: Console, tokens: str, states: list[str], stages: Sequence[int]) -> None:
    """Draw the strip, numbered at the start of each row, with a gap where a stage begins.

    Args:
        out: The console.
        tokens: One character for each layer.
        states: A key of the legend for each layer; empty for a layer without a known state.
        stages: The stage of each layer.
    """
    if len(tokens) > 100 * _MOST_CELLS:
        out.print(f"({len(tokens)} layers: too many to draw)")
        return
    for indices in _row_indices(stages, min(_MOST_CELLS, out.width - _INDENT)):
        start = indices.start
        row = Text(f"{start + 1:>6} ")
        marks = " " * _INDENT
        for index in indices:
            gap = " " if index > start and stages[index] != stages[index - 1] else ""
            row.append(gap)
            row.append(_cell(tokens[index]), style=_STYLES.get(states[index], "dim"))
            marks += gap + _MARKS.get(states[index], " ")
        draw(out, row)
        if not _coloured(out):
            draw(out, Text(marks))
    draw_wrapped(out, _legend(states, _coloured(out)), indent=_INDENT)


def _row_indices(stages: Sequence[int], most: int) -> Iterator[range]:
    """The layers of each row: at most 60, and with the gaps between stages no wider than that."""
    start = width = 0
    for index in range(len(stages)):
        cells = 2 if index > start and stages[index] != stages[index - 1] else 1
        if width + cells > most or index - start == _MOST_CELLS:
            yield range(start, index)
            start, width, cells = index, 0, 1
        width += cells
    yield range(start, len(stages))


def _cell(token: str) -> str:
    # A refused pattern may contain any character, also one that moves the terminal's cursor.
    return token if token.isprintable() else "\N{REPLACEMENT CHARACTER}"


def _coloured(out: Console) -> bool:
    return out.is_terminal and out.color_system is not None and not out.no_color


def _legend(states: list[str], coloured: bool) -> Text:
    def entries() -> Iterator[Text]:
        for state, style in _STYLES.items():
            count = states.count(state)
            if count:
                mark = ("  ", style) if coloured else (_MARKS[state], "")
                yield Text.assemble(mark, f" {state} {count}")

    return Text("   ").join(entries())
