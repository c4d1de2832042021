"""The arguments that upstream's trainer needs beside those of a plan."""

from collections.abc import Iterator, Set
from typing import Final

import attrs

from megatron_seams.planning.roads import Roads
from megatron_seams.upstream.trainer import Outcome

#: What a run needs without `validate_args` asking for it, each with the flags that give it. Read in
#: upstream's `training.py` and `build_tokenizer`: without them a run fails later, and less clearly.
_OF_A_RUN: Final = (
    (("--train-iters", "--train-samples"), "how long to train"),
    (("--lr",), "the learning rate"),
    (("--data-path", "--mock-data"), "the text to train on"),
    (("--tokenizer-type",), "the tokenizer, with its files or the size of its vocabulary"),
    (("--eval-interval",), "the iterations between evaluations, also where --eval-iters is 0"),
)
#: The attribute of a flag that older releases have a number for, and newer ones divide by all the
#: same: it is needed where its default is None.
_NONE_IN_SOME: Final = frozenset({"eval_interval"})


@attrs.frozen(kw_only=True)
class Need:
    """One thing that the trainer still needs.

    Attributes:
        flags: The flags that give it, any one of them.
        why: What it is, or what upstream says where it is missing.
        key: The recipe's key that would give it, where it belongs to the model; else None.
    """

    flags: tuple[str, ...]
    why: str
    key: str | None = None

    def __str__(self) -> str:
        """The flags, or the key, and why."""
        where = f"[{self.key}], or " if self.key else ""
        return f"{where}{' or '.join(self.flags)} ({self.why})"


def needs(roads: Roads, outcome: Outcome) -> tuple[Need, ...]:
    """The needs of a run by these arguments, upstream's own demands first."""
    found: dict[tuple[str, ...], Need] = {}
    for need in (*_demanded(roads, outcome), *_usual(roads)):
        found.setdefault(need.flags, need)
    return tuple(found.values())


def _demanded(roads: Roads, outcome: Outcome) -> Iterator[Need]:
    """Failures of upstream's checks that are due to something not decided yet."""
    decided = roads.decided(outcome)
    for fault in outcome.faults:
        open_ = fault.origin.all - decided
        missing = open_ & fault.origin.unset or open_
        listed = roads.settings.flags.values()  # in the order of upstream's parser
        flags = dict.fromkeys(flag.names[0] for flag in listed if flag.dest in missing)
        if flags:
            yield Need(flags=tuple(flags), why=fault.message, key=_key(roads, missing))


def _key(roads: Roads, names: Set[str]) -> str | None:
    fields = (roads.field_of(name) for name in sorted(names))
    return next((f"megatron.{field}" for field in fields if field is not None), None)


def _usual(roads: Roads) -> Iterator[Need]:
    for names, why in _OF_A_RUN:
        listed = [roads.settings.flags[name] for name in names if name in roads.settings.flags]
        flags = tuple(
            flag.names[0]
            for flag in listed
            if flag.dest not in _NONE_IN_SOME or flag.default is None
        )
        if flags:
            yield Need(flags=flags, why=why)
