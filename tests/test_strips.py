"""Strips of the page, without a browser."""

import time

from megatron_seams.report.strips import Cell, Strip


def strip(*sizes: int) -> Strip:
    """A strip of native layers, of so many on each stage."""
    stages = [stage for stage, size in enumerate(sizes) for _ in range(size)]
    cells = tuple(
        Cell(number=number, token="M", state="native", head="", why="", stage=stage)  # noqa: S106
        for number, stage in enumerate(stages, start=1)
    )
    return Strip(name="m", source="M", cells=cells, ranks=tuple(range(len(sizes))))


def test_each_stage_has_its_layers_or_says_that_it_has_none() -> None:
    stages = strip(2, 0, 1).stages
    assert [[cell.number for cell in stage.cells] for stage in stages] == [[1, 2], [], [3]]
    assert [stage.label for stage in stages] == ["stage 0", "stage 1, no layers", "stage 2"]


def test_many_stages_take_no_square_of_time() -> None:
    made = strip(*[1] * 20_000)
    started = time.process_time()
    assert len(made.stages) == 20_000
    assert time.process_time() - started < 2
