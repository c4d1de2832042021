"""The agreement: each rank publishes its statement, one of them compares, all read the verdict.

There is no collective in it: a rank that could not make a plan never reaches one. Each rank sends
the store a constant number of short requests. The last to arrive sees from one counter whether all
made the same statement, and writes the verdict; only where they did not does it read them all. If
some rank stays silent, the first whose time is up does.
"""

import json
import socket
from datetime import timedelta
from typing import Any, Final

from torch.distributed import (  # type: ignore[attr-defined]  # not in torch's __all__
    DistError,
    DistStoreError,
    PrefixStore,
    Store,
)

from megatron_seams.errors import RanksDiffer
from megatron_seams.runtime.agreement.meeting import TIMEOUT, Meeting
from megatron_seams.runtime.agreement.roll import Roll
from megatron_seams.runtime.agreement.statement import Statement

#: How long a rank waits for a verdict that another has begun to write.
_GRACE: Final = timedelta(seconds=5)
#: How long a rank that is to stop waits for the others to have read why: the store may end with it.
_FAREWELL: Final = timedelta(seconds=2)
_AGREED: Final = "agreed"


def agree(meeting: Meeting | None, topic: str, statement: Statement) -> None:
    """Return once all ranks have made the same statement; stop every one of them otherwise.

    All ranks call this in the same order. A statement that all of them made before is not compared
    again, so that a rank may build a second model of the same plan by itself.

    Args:
        meeting: The ranks; None for a process that has no peers, and nothing happens.
        topic: What the statement is about; ranks that agree on another do not meet.
        statement: This rank's. One with an error never passes, but all ranks wait for the verdict.

    Raises:
        RanksDiffer: With the odd ranks, the silent ones, and the fields that differ. Not raised
            where every rank has an error: each then has its own to raise.
    """
    if meeting is None:
        return
    try:
        verdict = _verdict(meeting, topic, statement)
    except (DistError, RuntimeError) as error:  # the store's, when it is lost or too slow
        verdict = _lost(meeting, error)
    if verdict is None:
        return
    raise RanksDiffer(
        asked=f"one model on all {meeting.world_size} ranks",
        found=verdict,
        next="give the named ranks the packages and the receipt of the others; a silent rank has "
        f"no megatron-seams, hangs in an import, or has ended ({TIMEOUT}=SECONDS lets the others "
        "wait longer for it)",
        subject="ranks",
    )


def _verdict(meeting: Meeting, topic: str, statement: Statement) -> str | None:
    """The disagreement of the ranks; None if they agree, or if all of them have an error."""
    digest = statement.digest
    about = PrefixStore(topic, meeting.store)
    if about.check([f"{_AGREED} {digest}"]):
        return None
    turn = about.add(f"turn of {meeting.rank}", 1)
    store = PrefixStore(str(turn), about)
    if store.add(f"count {digest}", 1) == 1:
        store.set(f"statement {digest}", json.dumps(statement.to_dict()))
    store.set(f"rank {meeting.rank}", f"{digest} {socket.gethostname()}")
    if store.add("arrived", 1) == meeting.world_size or not _written(store, meeting.timeout):
        _judge(meeting, store, about, digest)
    if not _written(store, _GRACE):
        return "no rank has written a verdict: the one that began to has ended, or hangs"
    verdict: dict[str, Any] = json.loads(store.get("verdict"))
    if verdict["fault"]:
        _part(store, verdict["present"])
    return verdict["fault"] or None


def _written(store: Store, timeout: timedelta) -> bool:
    try:
        store.wait(["verdict"], timeout)
    except DistStoreError:  # too late; a lost connection is another error
        return bool(store.check(["verdict"]))
    return True


def _judge(meeting: Meeting, store: Store, about: Store, digest: str) -> None:
    """Compare and write the verdict, unless another rank has begun to."""
    if store.add("judge", 1) > 1:
        return
    world = meeting.world_size
    if store.add(f"count {digest}", 0) == world:
        if not json.loads(store.get(f"statement {digest}"))["error"]:
            about.set(f"{_AGREED} {digest}", "")
        verdict: dict[str, Any] = {"fault": "", "present": world}
    else:
        roll = Roll.read(store, world)
        fault = roll.fault(meeting.timeout.total_seconds())
        verdict = {"fault": fault, "present": world - len(roll.silent)}
    store.set("verdict", json.dumps(verdict))


def _part(store: Store, present: int) -> None:
    """Wait a moment for the others to have read the verdict."""
    if store.add("told", 1) >= present:
        store.set("all told", "")
    try:
        store.wait(["all told"], _FAREWELL)
    except (DistError, RuntimeError):
        return  # a rank that was killed on its way out reads nothing more


def _lost(meeting: Meeting, error: BaseException) -> str:
    return (
        f"rank {meeting.rank} lost the store of the ranks ({type(error).__name__}: {error}): the "
        "process that serves it, rank 0 or the launcher, has ended"
    )
