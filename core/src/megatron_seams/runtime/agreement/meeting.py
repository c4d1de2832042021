"""Where the ranks of a run meet: a key-value store that all of them can reach, and how long."""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import attrs
import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined]  # not in torch's __all__
    PrefixStore,
    Store,
    TCPStore,
)
from torch.distributed.distributed_c10d import _get_default_store

from megatron_seams.errors import LaunchInvalid, RanksDiffer

#: The environment variable with the seconds for which a rank waits for the others' word.
TIMEOUT: Final = "MEGATRON_SEAMS_AGREEMENT_TIMEOUT"
_SECONDS: Final = 15.0
#: The more ranks, the longer one store takes to serve them all.
_RANKS_A_SECOND: Final = 500
#: What a launcher sets for every rank, before there is a process group.
_LAUNCHED: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: Stores of this process that were made here, by address. A store ends with its last reference, and
#: on rank 0 it may be the server that the others talk to.
_made: dict[tuple[str, int, str], TCPStore] = {}


@attrs.frozen(kw_only=True)
class Meeting:
    """The ranks that are to agree.

    Attributes:
        store: The store.
        rank: This process's number.
        world_size: How many ranks there are.
        timeout: How long a rank waits for the others from its own arrival on.
    """

    store: Store
    rank: int
    world_size: int
    timeout: timedelta


def timeout_of(variables: Mapping[str, str], world_size: int) -> timedelta:
    """How long a rank waits for the others' word: 15 s and a second for every 500 ranks, or as set.

    Args:
        variables: The process's environment.
        world_size: The number of ranks.

    Raises:
        LaunchInvalid: The variable is no number of seconds above 0.
    """
    text = variables.get(TIMEOUT, "").strip()
    if not text:
        return timedelta(seconds=_SECONDS + world_size / _RANKS_A_SECOND)
    try:
        seconds = timedelta(seconds=float(text))
        if seconds > timedelta(0):
            return seconds
    except (ValueError, OverflowError):
        pass
    raise LaunchInvalid(
        asked=f"the time that a rank waits for the others, {TIMEOUT}={text}",
        found="it is no number of seconds above 0",
        next="give a number of seconds, or leave the variable unset",
        subject=TIMEOUT,
    )


def meeting_here() -> Meeting | None:
    """Where this process's ranks meet now; None for a process that has no peers.

    In a process group its own store; before there is one, the store of the launcher that set
    ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``.

    Raises:
        LaunchInvalid: The variable of the timeout, or one of the launcher's, makes no sense.
        RanksDiffer: The launcher's store cannot be reached in time.
    """
    variables = os.environ
    if dist.is_available() and dist.is_initialized():
        if dist.get_world_size() == 1:
            return None
        # There is no public way to a process group's store.
        store = PrefixStore("megatron_seams", _get_default_store())
        return Meeting(
            store=store,
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            timeout=timeout_of(variables, dist.get_world_size()),
        )
    if not is_launched(variables):
        return None
    refuse_half_launched(variables)
    rank, world_size = _number(variables, "RANK"), _number(variables, "WORLD_SIZE")
    timeout = timeout_of(variables, world_size)
    # A restarted run finds an elastic launcher's store as the last attempt left it.
    attempt = variables.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"megatron_seams/attempt {attempt}", _launchers_store(variables, timeout))
    return Meeting(store=store, rank=rank, world_size=world_size, timeout=timeout)


def is_launched(variables: Mapping[str, str]) -> bool:
    """Whether a launcher started this process as one of several ranks."""
    if any(not variables.get(name) for name in _LAUNCHED):
        return False
    return variables["WORLD_SIZE"].isdecimal() and int(variables["WORLD_SIZE"]) > 1


def refuse_half_launched(variables: Mapping[str, str]) -> None:
    """Refuse variables of a launcher's that no launcher leaves so: a shell may have kept some.

    Raises:
        LaunchInvalid: One of the four is missing or no number, or the rank is none of the world's.
    """
    for name in _LAUNCHED:
        if not variables.get(name):
            raise _launched_wrong(
                f"the launcher's variable {name}, beside {' and '.join(_LAUNCHED[:2])}",
                "it is not set",
                name,
            )
    rank, world_size = _number(variables, "RANK"), _number(variables, "WORLD_SIZE")
    _number(variables, "MASTER_PORT")
    if rank >= world_size:
        found = f"the ranks of WORLD_SIZE={world_size} begin at 0"
        raise _launched_wrong(f"a launcher's RANK={rank}", found, "RANK")


def _launched_wrong(asked: str, found: str, name: str) -> LaunchInvalid:
    return LaunchInvalid(
        asked=asked,
        found=found,
        next="start all ranks by one launcher, which sets it; or unset RANK and WORLD_SIZE for a "
        "single process",
        subject=name,
    )


def _number(variables: Mapping[str, str], name: str) -> int:
    """A launcher's variable as the number that it has to be.

    Raises:
        LaunchInvalid: It is none.
    """
    text = variables[name]
    if not text.isdecimal():
        asked = f"the number of a launcher's variable, {name}={text}"
        raise _launched_wrong(asked, "it is no whole number from 0", name)
    return int(text)


def _launchers_store(variables: Mapping[str, str], timeout: timedelta) -> TCPStore:
    """The store at the launcher's address; without an elastic launcher rank 0 serves it.

    Later process groups of this process share that server. Unlike torch's own rendezvous, rank 0
    does not wait here for its peers: who does not come is what the agreement is to find out.
    """
    host, port = variables["MASTER_ADDR"], _number(variables, "MASTER_PORT")
    rank = _number(variables, "RANK")
    served = variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    key = (host, port, variables.get("TORCHELASTIC_RUN_ID", ""))
    if key not in _made:
        try:
            _made[key] = TCPStore(
                host_name=host,
                port=port,
                is_master=rank == 0 and not served,
                timeout=timeout,
                wait_for_workers=False,
                multi_tenant=True,
            )
        except (RuntimeError, ValueError) as error:
            raise RanksDiffer(
                asked=f"the store of this run's ranks at {host}:{port}",
                found=f"rank {rank} cannot reach it in {timeout.total_seconds():g} s "
                f"({type(error).__name__}), so "
                + ("the launcher" if served else "rank 0, which serves it,")
                + " has ended, hangs, or has no megatron-seams",
                next="look at the output of rank 0 and of its launcher",
                subject="rank 0",
            ) from error
    return _made[key]
