"""The parts that the options of both seams share."""

from itertools import pairwise
from typing import Any, Literal, get_args

#: The kernels of the tables (:mod:`megatron_seams_ngram.ops.dispatch`).
Backend = Literal["cpu", "triton", "torch"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
#: Where the rows of the tables lie: with the model, or on the host.
Place = Literal["device", "host"]
PLACES: tuple[Place, ...] = get_args(Place)

#: The ranks that the tables' rows are divided over (:mod:`megatron_seams_ngram.expert_ranks`).
Ranks = Literal["tensor", "expert"]
RANKS: tuple[Ranks, ...] = get_args(Ranks)


#: The rows that a step updates where they lie on the host (:mod:`megatron_seams_ngram.host.rule`).
Updates = Literal["touched", "all"]
UPDATES: tuple[Updates, ...] = get_args(Updates)

#: Rows of one table are below this: all tables together then count in 64 bits.
MOST_ROWS = 2**48


def ascending_orders(_: Any, __: Any, orders: tuple[int, ...]) -> None:
    """Check that n-gram orders ascend from 2 or more; an attrs validator."""
    if not orders:
        message = "orders: expected at least one, found none"
        raise ValueError(message)
    if orders[0] < 2:
        message = f"orders: expected 2 and above (1 is the word embedding), found {orders}"
        raise ValueError(message)
    if any(low >= high for low, high in pairwise(orders)):
        message = f"orders: expected ascending numbers without repeats, found {orders}"
        raise ValueError(message)


def check_place(tables: Place, divided_over: Ranks, host_updates: Updates) -> None:
    """Refuse what the place of the tables does not have.

    On the host expert-parallel ranks cannot share rows, since nothing there asks for them; and only
    there is it a question which rows a step updates.

    Raises:
        ValueError: It is asked for.
    """
    if tables == "device" and host_updates != "touched":
        message = (
            "host_updates: expected 'touched' with tables = 'device', whose rows the model's "
            f"optimizer updates, found {host_updates!r}"
        )
        raise ValueError(message)
    if tables == "host" and divided_over == "expert":
        message = (
            "divided_over: expected 'tensor' with tables = 'host', which every data-parallel rank "
            "has whole, found 'expert'"
        )
        raise ValueError(message)
