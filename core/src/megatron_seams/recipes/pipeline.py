"""Pipeline stages: how the decoder's layers are cut into them, and which rank has which stage."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final

import attrs

from megatron_seams.base.wording import counted
from megatron_seams.errors import UpstreamForbids
from megatron_seams.recipes.pattern import MAX_DEPTH, Pattern
from megatron_seams.recipes.recipe import Parallelism, Recipe

#: Upstream's fields for the number of layers on the first and on the last stage, where the pattern
#: itself writes no stages.
FIRST: Final = "num_layers_in_first_pipeline_stage"
LAST: Final = "num_layers_in_last_pipeline_stage"


@attrs.frozen(kw_only=True)
class Pipeline:
    """The stages of a model, in the order in which a token passes them.

    Attributes:
        sizes: The number of decoder layers on each stage; a stage may have none.
        ranks: The number of pipeline ranks. Under virtual pipeline parallelism each has several
            stages, ``len(sizes) // ranks`` of them.
    """

    sizes: tuple[int, ...]
    ranks: int = 1

    @property
    def stages(self) -> tuple[int, ...]:
        """The 0-based stage of each layer."""
        each = ((stage,) * size for stage, size in enumerate(self.sizes))
        return tuple(chain.from_iterable(each))

    @property
    def virtual(self) -> int:
        """The number of stages on each rank; 1 without virtual pipeline parallelism."""
        return len(self.sizes) // self.ranks

    def rank_of(self, stage: int) -> int:
        """The 0-based pipeline rank that has a stage: upstream deals the stages out in turn."""
        return stage % self.ranks

    def slices(self) -> Iterator[slice]:
        """The layers of each stage, as a slice of a sequence with one entry for each layer."""
        start = 0
        for size in self.sizes:
            yield slice(start, start + size)
            start += size


def written_stages(pattern: Pattern) -> Pipeline:
    """The stages that the pattern itself writes with ``|``; one stage without it."""
    return Pipeline(sizes=pattern.stages, ranks=len(pattern.stages))


def pipeline_of(recipe: Recipe, pattern: Pattern) -> Pipeline:
    """The stages that the model runs on, also where the pattern has no ``|``.

    Without a ``|`` upstream cuts evenly, except for a first and a last stage whose sizes the
    configuration may give; those are taken off, and the rest is cut evenly. A recipe that writes
    stages and does not say over how many ranks is taken to have a rank for each.

    The answer holds where :func:`layout_faults` finds nothing; elsewhere there are no such stages,
    and it is those that the pattern writes.
    """
    ranks = recipe.parallelism.pipeline_parallel
    if ranks == 1:
        return written_stages(pattern)
    if len(pattern.stages) > 1:
        return Pipeline(sizes=pattern.stages, ranks=ranks)
    sizes = _cut(pattern.depth, ranks, _ends(recipe.megatron))
    return written_stages(pattern) if sizes is None else Pipeline(sizes=sizes, ranks=ranks)


def layout_faults(recipe: Recipe, pattern: Pattern) -> Iterator[UpstreamForbids]:
    """A fault for each reason why the layers cannot be cut into stages as the recipe asks.

    The rules are upstream's: those of ``validate_args`` and ``select_pipeline_segment`` where the
    pattern writes stages, and where it does not, those of ``TransformerConfig``. One is added:
    every layer is on one stage. Upstream lets a first and a last stage with more layers than there
    are through, and then builds some twice.
    """
    ends = _ends(recipe.megatron)
    if len(pattern.stages) > 1:
        for key in ends:
            yield _forbids(
                f"[megatron] {key} = {ends[key]}",
                "the pattern writes its stages itself, with '|'",
                "leave the key out, or leave out '|'",
                f"megatron.{key}",
            )
    elif ends:
        yield from _uneven(recipe.parallelism, pattern, ends)
        return
    ranks = recipe.parallelism.pipeline_parallel
    count, unit = len(pattern.stages), "stages in the pattern"
    found = f"{count} stages in the pattern do not divide evenly"
    if count == 1:
        count, unit = pattern.depth, "layers"
        does = "does" if count == 1 else "do"
        found = f"{counted(count, 'layer')} {does} not divide evenly"
    if count % ranks:
        yield _forbids(
            f"pipeline-parallel = {ranks}",
            found,
            "change pipeline-parallel, or write the stages into the pattern with '|'"
            + (
                ""
                if unit != "layers"
                else f", or say how many layers the ends have: {FIRST}, {LAST} in [megatron]"
            ),
            "parallelism.pipeline-parallel",
        )


def one_rank(parallelism: Parallelism, pattern: Pattern) -> UpstreamForbids | None:
    """The fault that a pattern writes stages and one rank is to have them all; None if not.

    A recipe that says nothing of ranks says one. Its plan has a rank for each stage, and this fault
    as a finding; no road to a model takes it. ``validate_args`` takes the stages of one rank for
    virtual ones, which it refuses without further ranks; ``select_pipeline_segment`` would give
    that rank the first stage, and leave out the others without a word.
    """
    stages = len(pattern.stages)
    if stages == 1 or parallelism.pipeline_parallel > 1:
        return None
    ranks = [it for it in range(stages, 1, -1) if stages % it == 0]
    enough = " or ".join(map(str, ranks))
    return _forbids(
        f"the {stages} stages of pattern {pattern.text!r}",
        "pipeline-parallel is 1, and one rank builds one stage: upstream's trainer refuses it",
        f"set pipeline-parallel in the recipe's [parallelism] to {enough}, or leave out '|'",
        "parallelism.pipeline-parallel",
    )


def _ends(settings: Mapping[str, Any]) -> dict[str, int]:
    """Those of :data:`FIRST` and :data:`LAST` that a recipe gives."""
    given = {key: settings.get(key) for key in (FIRST, LAST)}
    return {key: size for key, size in given.items() if type(size) is int}


def _uneven(
    parallelism: Parallelism, pattern: Pattern, ends: Mapping[str, int]
) -> Iterator[UpstreamForbids]:
    """Why a first and a last stage of the given sizes leave no even rest."""
    none = [key for key, size in ends.items() if size < 1]
    for key in none:
        yield _forbids(
            f"[megatron] {key} = {ends[key]}",
            "it is not larger than 0",
            "give the stage at least one layer, or leave the key out",
            f"megatron.{key}",
        )
    ranks = parallelism.pipeline_parallel
    layers, stages = pattern.depth - sum(ends.values()), ranks - len(ends)
    even = bool(layers) == bool(stages) and not (stages and layers % stages)
    # One rank has all layers whatever the sizes are; upstream's configuration looks at them first.
    if none or (even and (ranks == 1 or _cut(pattern.depth, ranks, ends))):
        return
    given = " and ".join(f"{key} = {size}" for key, size in ends.items())
    yield _forbids(
        f"pipeline-parallel = {ranks} with [megatron] {given}",
        f"{layers} of {pattern.depth} layers are left for {stages} stages between"
        if layers >= 0
        else f"the pattern has {pattern.depth} layers",
        "give sizes that leave the other stages an equal number of layers, or write the stages "
        "into the pattern with '|'",
        f"megatron.{next(iter(ends))}",
    )


def _cut(depth: int, ranks: int, ends: Mapping[str, int]) -> tuple[int, ...] | None:
    """The number of layers on each stage, by upstream's own arithmetic.

    Args:
        depth: The number of layers.
        ranks: The number of stages.
        ends: The sizes of the first and last stage that are given.

    Returns:
        The sizes; None where some layer is on no stage, on two, or under another number.
    """
    if ranks > MAX_DEPTH:  # no model has as many layers
        return None
    layers = range(depth)
    first, last = ends.get(FIRST, 0), ends.get(LAST, 0)
    each = (depth - first - last) // max(1, ranks - len(ends))
    sizes: list[int] = []
    before = 0
    for rank in range(ranks):
        if FIRST in ends and rank == 0:
            start, size = 0, first
        elif LAST in ends and rank == ranks - 1:
            start, size = depth - last, last
        else:
            start, size = (rank - (FIRST in ends)) * each + first, each
        taken = layers[start : start + size]
        if taken and start != before:
            return None
        sizes.append(len(taken))
        before += len(taken)
    return tuple(sizes) if before == depth else None


def _forbids(asked: str, found: str, advice: str, key: str) -> UpstreamForbids:
    return UpstreamForbids(asked=asked, found=found, next=advice, key=key)
