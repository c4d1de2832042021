"""Real ranks over gloo: every way of spreading the mixer gives one rank's numbers."""

from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from megatron_seams.recipes.recipe import Parallelism
from over_ranks import BOUNDS, CP, IDS, PP, ROW, SP, TP, Run, Spread

pytestmark = pytest.mark.megatron

#: The paper's sharing: one query head and one key head.
PAPER = {"heads": 4, "K": 12, "V": 5}
#: Every other kind of sharing at two ranks.
SHARED = {"heads": 4, "K": 6, "V": 4, "q-heads": 4, "v-heads": 1, "w-heads": 1, "f-heads": 2}


def run(
    pattern: str,
    options: Mapping[str, Any],
    ids: Any = IDS,
    bounds: tuple[int, ...] | None = None,
) -> Run:
    """The model, with ``[seams.m2rnn]``."""
    seams = {"m2rnn": options}
    return Run(pattern=pattern, tokens={"R": "recurrent"}, seams=seams, ids=ids, bounds=bounds)


#: Each on one rank, and what the others are held to.
ONE_RANK = {
    "hybrid": run("R*R-", PAPER),
    "packed hybrid": run("R*R-", PAPER, ROW, BOUNDS),
    "recurrent": run("R-R-", PAPER),
    "packed recurrent": run("R-R-", PAPER, ROW, BOUNDS),
    "shared": run("RR", SHARED),
}

#: Name -> which of them, over how many ranks.
TWO_RANKS = {
    "TP 2": ("hybrid", TP),
    "TP 2, packed": ("packed hybrid", TP),
    "TP 2, shared heads": ("shared", TP),
    "TP 2 with SP": ("hybrid", SP),
    "TP 2 with SP, packed": ("packed hybrid", SP),
    "PP 2": ("hybrid", PP),
    "CP 2": ("recurrent", CP),
    "CP 2, packed": ("packed recurrent", CP),
    "CP 2, shared heads": ("shared", CP),
}
BOTH = Parallelism(tensor_parallel=2, sequence_parallel=True, context_parallel=2)
FOUR_RANKS = {
    "TP 2 with SP, CP 2": ("recurrent", BOTH),
    "TP 2 with SP, CP 2, packed": ("packed recurrent", BOTH),
    "TP 2 with SP, PP 2": ("hybrid", attrs.evolve(SP, pipeline_parallel=2)),
}
EVERY = TWO_RANKS | FOUR_RANKS
#: Whose checkpoints are read again on one rank.
SAVED = ("TP 2", "TP 2, shared heads", "TP 2 with SP, PP 2")


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Spread:
    folder = tmp_path_factory.mktemp("checkpoints")
    return Spread(one_rank=ONE_RANK, over=EVERY, saved=SAVED, folder=folder)


@pytest.mark.parametrize("name", EVERY)
def test_the_outputs_are_one_ranks(name: str, spread: Spread) -> None:
    spread.check_outputs(name)


@pytest.mark.parametrize("name", EVERY)
def test_the_gradients_are_one_ranks(name: str, spread: Spread) -> None:
    spread.check_gradients(name)


@pytest.mark.parametrize("name", [name for name in EVERY if name.endswith("packed")])
def test_no_document_reaches_the_next(name: str, spread: Spread) -> None:
    spread.check_documents(name)


@pytest.mark.parametrize("name", SAVED)
def test_the_checkpoint_is_read_on_one_rank(name: str, spread: Spread) -> None:
    spread.check_checkpoint(name)
