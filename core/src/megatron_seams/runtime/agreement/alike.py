"""Making a thing on every rank, and going on only where every rank has made the same."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from megatron_seams.errors import Refusal, SeamsError
from megatron_seams.runtime.agreement.exchange import agree
from megatron_seams.runtime.agreement.meeting import meeting_here
from megatron_seams.runtime.agreement.statement import Statement

T = TypeVar("T")


def made_alike(topic: str, make: Callable[[], T], describe: Callable[[T], Mapping[str, Any]]) -> T:
    """Call ``make`` and compare what it returned, or its error, with that of all other ranks.

    All ranks call this in the same order. A process without peers only calls ``make``.

    Args:
        topic: What is made.
        make: Makes it.
        describe: What it is, as JSON values.

    Raises:
        RanksDiffer: A rank made another thing, failed, or stayed silent.
        Exception: What ``make`` raised, where there are no other ranks or all of them failed.
    """
    made: T | None = None
    failure: Exception | None = None
    try:
        made = make()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks are to know of it
        failure = error
    try:
        meeting = meeting_here()
    except (SeamsError, Refusal):
        if failure is not None:
            raise failure from None
        raise
    if meeting is not None:
        if failure is not None:
            statement = Statement.of_error(failure)
        else:
            statement = Statement.of(describe(made))  # type: ignore[arg-type] # it did not fail
        agree(meeting, topic, statement)
    if failure is not None:
        raise failure
    return made  # type: ignore[return-value] # as above
