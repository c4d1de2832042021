"""Refusals of upstream's trainer, in its own words."""

from collections.abc import Iterable, Iterator

from megatron_seams.errors import UpstreamForbids
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.recipe_words import recipe_words
from megatron_seams.planning.roads import Roads
from megatron_seams.planning.spelling import Spoken
from megatron_seams.upstream.programs.interpreter import Fault
from megatron_seams.upstream.programs.values import Origin
from megatron_seams.upstream.settings import NativeSettings
from megatron_seams.upstream.trainer import Outcome


def explicit_refusals(plan: Plan, settings: NativeSettings) -> list[UpstreamForbids]:
    """Upstream's refusals of the settings that a recipe spells out.

    A setting that the recipe leaves open is not judged: the command line may still give it.
    """
    trainer = settings.trainer
    if not plan.megatron or trainer is None or not trainer.is_there:
        return []
    # None of the trainer's checks reads the model's constructor, which takes long to follow.
    roads = Roads(plan=plan, settings=settings, trainer=trainer, model=False)
    words = [each for _, each in recipe_words(roads) if isinstance(each, Spoken)]
    known = roads.spelled_out | {each.flag.dest for each in words}
    faults = (*roads.of_words(words).faults, *roads.classes.faults)
    return _refused(roads, [fault for fault in faults if fault.origin.all <= known], words)


def refusals(roads: Roads, words: Iterable[Spoken], outcome: Outcome) -> list[UpstreamForbids]:
    """Upstream's refusals of a plan, whatever else its trainer is given.

    Args:
        roads: The plan.
        words: What was passed to the trainer.
        outcome: What it makes of that.
    """
    decided = roads.decided(outcome)
    faults = [fault for fault in outcome.faults if fault.origin.all <= decided]
    return _refused(roads, (*faults, *roads.classes.faults), words)


def _refused(
    roads: Roads, faults: Iterable[Fault], words: Iterable[Spoken]
) -> list[UpstreamForbids]:
    # Both roads come to the configuration's own checks.
    once = {fault.message: fault for fault in reversed([*faults])}
    return [_forbids(roads, fault, words) for fault in reversed(once.values())]


def _forbids(roads: Roads, fault: Fault, words: Iterable[Spoken]) -> UpstreamForbids:
    asked = list(dict.fromkeys(_asked(roads, fault.origin, words)))
    keys = [key for key, _ in asked]
    settings = [key for key in keys if key.startswith("megatron.")]
    return UpstreamForbids(
        asked=", ".join(f"{key} = {value}" for key, value in asked)
        or f"the model {roads.plan.name}",
        found=f"upstream refuses it: {fault.message}",
        next=f"change {' or '.join(keys)}" if keys else "change the recipe",
        key=settings[0] if settings else keys[0] if keys else None,
    )


def _asked(roads: Roads, origin: Origin, words: Iterable[Spoken]) -> Iterator[tuple[str, str]]:
    """The recipe's keys behind attributes of the parsed arguments, each with its value."""
    by_dest = {each.flag.dest: each for each in words}
    for name in sorted(origin.all):
        key = by_dest[name].key if name in by_dest else None
        if name in roads.plan.megatron:
            key = f"megatron.{name}"
        plan_key = roads.plan_key(name)
        if key is not None:
            yield key, repr(roads.plan.megatron[key.removeprefix("megatron.")])
        elif plan_key is not None:
            yield plan_key[0], repr(plan_key[1])
        elif name not in origin.unset and (field := roads.field_of(name)) is not None:
            yield f"megatron.{field}", f"{roads.default(field)!r} (not set)"
