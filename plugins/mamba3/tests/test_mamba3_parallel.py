"""Real ranks over gloo: every way of spreading the mixer gives one rank's numbers."""

from typing import Any

import pytest

from over_ranks import BOUNDS, IDS, PP, ROW, SP, TP, Run, Spread

pytestmark = pytest.mark.megatron

SIZES = {"state-size": 8, "head-dim": 8, "chunk-size": 8}


def run(ids: Any = IDS, bounds: tuple[int, ...] | None = None, **options: Any) -> Run:
    """The model, with ``[seams.mamba3]``."""
    seams = {"mamba3": SIZES | {name.replace("_", "-"): value for name, value in options.items()}}
    return Run(pattern="K*K-", tokens={"K": "mamba3"}, seams=seams, ids=ids, bounds=bounds)


#: Each on one rank, and what the others are held to: one group for all heads, or one for each rank.
ONE_RANK = {
    "SISO": run(),
    "MIMO": run(groups=2, mimo_rank=3, out_norm=True),
    "packed": run(ROW, BOUNDS, mimo_rank=2),
}
TWO_RANKS = {
    "SISO, TP 2": ("SISO", TP),
    "SISO, TP 2 with SP": ("SISO", SP),
    "SISO, PP 2": ("SISO", PP),
    "MIMO, TP 2": ("MIMO", TP),
    "MIMO, TP 2 with SP": ("MIMO", SP),
    "packed, TP 2 with SP": ("packed", SP),
}
#: Whose checkpoints are read again on one rank.
SAVED = ("SISO, TP 2", "MIMO, TP 2")


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Spread:
    folder = tmp_path_factory.mktemp("checkpoints")
    return Spread(one_rank=ONE_RANK, over=TWO_RANKS, saved=SAVED, folder=folder)


@pytest.mark.parametrize("name", TWO_RANKS)
def test_outputs_and_gradients_are_one_ranks(name: str, spread: Spread) -> None:
    spread.check_outputs(name)
    spread.check_gradients(name)


def test_no_document_reaches_the_next(spread: Spread) -> None:
    spread.check_documents("packed, TP 2 with SP")


@pytest.mark.parametrize("name", SAVED)
def test_the_checkpoint_is_read_on_one_rank(name: str, spread: Spread) -> None:
    spread.check_checkpoint(name)
