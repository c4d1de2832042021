"""The ranks of a run grouped by their statements, and the message about those that differ."""

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import attrs
from torch.distributed import DistError, Store  # type: ignore[attr-defined]  # not in torch's __all__

from megatron_seams.base.wording import numbered
from megatron_seams.runtime.agreement.statement import Statement

#: Ranks that are read in one request.
_CHUNK: Final = 1024
#: Groups, and fields of a group, that a message lists.
_GROUPS: Final = 6
_FIELDS: Final = 8
_HOSTS: Final = 4
#: How long a statement is waited for whose digest is there.
_PATIENCE: Final = timedelta(seconds=2)


@attrs.frozen(kw_only=True)
class Group:
    """Ranks that made one statement.

    Attributes:
        statement: It.
        ranks: Their numbers, ascending.
        hosts: The names of their machines, without repetition.
    """

    statement: Statement
    ranks: tuple[int, ...]
    hosts: tuple[str, ...]

    def __str__(self) -> str:
        """``ranks 0-3, 6 (on a, b)``."""
        more = ", ..." if len(self.hosts) > _HOSTS else ""
        hosts = f"{', '.join(self.hosts[:_HOSTS])}{more}"
        return f"{numbered('rank', self.ranks)} (on {hosts})"


@attrs.frozen(kw_only=True)
class Roll:
    """The statements of all ranks.

    Attributes:
        groups: Those with a plan first, then the largest first.
        silent: The ranks without a statement, ascending.
    """

    groups: tuple[Group, ...]
    silent: tuple[int, ...]

    @classmethod
    def read(cls, store: Store, world_size: int) -> "Roll":
        """Read every rank's word from the store; only done where they differ."""
        silent = tuple(_missing(store, 0, world_size))
        absent = set(silent)
        present = [rank for rank in range(world_size) if rank not in absent]
        members: dict[str, list[int]] = {}
        hosts: dict[str, dict[str, None]] = {}
        for start in range(0, len(present), _CHUNK):
            ranks = present[start : start + _CHUNK]
            published = store.multi_get([f"rank {rank}" for rank in ranks])
            for rank, word in zip(ranks, published, strict=True):
                digest, _, host = bytes(word).decode().partition(" ")
                members.setdefault(digest, []).append(rank)
                hosts.setdefault(digest, {})[host] = None
        groups = [
            Group(
                statement=_statement(store, digest),
                ranks=tuple(ranks),
                hosts=tuple(hosts[digest]),
            )
            for digest, ranks in members.items()
        ]
        groups.sort(key=lambda it: (bool(it.statement.error), -len(it.ranks), it.ranks))
        return cls(groups=tuple(groups), silent=silent)

    def fault(self, seconds: float) -> str:
        """The fault in words; empty where every rank has an error of its own to raise.

        Args:
            seconds: How long the silent ranks were waited for.
        """
        if not self.silent and all(group.statement.error for group in self.groups):
            return ""
        parts = list(self._parts())
        if self.silent:
            silent = numbered("rank", self.silent)
            parts.append(f"{silent}: silent for {round(seconds, 1):g} s")
        return "; ".join(parts)

    def _parts(self) -> Iterator[str]:
        usual, *odd = self.groups
        if usual.statement.error:
            odd = list(self.groups)
        else:
            yield f"{usual}: as most, with a plan" if odd else f"{usual}: one plan"
        for group in odd[:_GROUPS]:
            error = group.statement.error
            if error:
                yield f"{group}: no plan, because {error}"
            else:
                yield f"{group}: {_differences(usual.statement, group.statement)}"
        if len(odd) > _GROUPS:
            rest = sorted(rank for group in odd[_GROUPS:] for rank in group.ranks)
            yield f"{numbered('rank', rest)}: other differences or errors"


def _statement(store: Store, digest: str) -> Statement:
    """The statement of a digest, which the first of its ranks published."""
    try:
        store.wait([f"statement {digest}"], _PATIENCE)
    except DistError:
        return Statement(error="its statement is lost, since the rank that published it has ended")
    return Statement(**json.loads(store.get(f"statement {digest}")))


def _missing(store: Store, start: int, stop: int) -> Iterator[int]:
    """The ranks from ``start`` to before ``stop`` without a statement, by halving."""
    if store.check([f"rank {rank}" for rank in range(start, stop)]):
        return
    if stop - start == 1:
        yield start
        return
    middle = (start + stop) // 2
    yield from _missing(store, start, middle)
    yield from _missing(store, middle, stop)


def _differences(usual: Statement, odd: Statement) -> str:
    """The fields in which two plans differ, the odd one's value first."""
    names = {**usual.fields, **odd.fields}
    differing = [name for name in names if _of(usual, name) != _of(odd, name)]
    # A digest differs with whatever it covers, and says nothing that the others do not.
    differing.sort(key=lambda name: name.endswith("digest"))
    shown = [f"{name} is {_of(odd, name)}, not {_of(usual, name)}" for name in differing[:_FIELDS]]
    if len(differing) > _FIELDS:
        shown.append(f"and {len(differing) - _FIELDS} more fields differ")
    return ", ".join(shown)


def _of(statement: Statement, name: str) -> str:
    fields: Mapping[str, Any] = statement.fields
    return json.dumps(fields[name], sort_keys=True) if name in fields else "absent"
