"""Pipeline stages: how the decoder's layers are cut into them."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import attrs

from megatron_seams.errors import UpstreamForbids
from megatron_seams.recipes.pattern import Pattern
from megatron_seams.recipes.recipe import Recipe


@attrs.frozen(kw_only=True)
class Pipeline:
    """The stages of a model, in the order in which a token passes them.

    Attributes:
        sizes: The number of decoder layers on each stage. Under virtual pipeline parallelism a rank
            has several of them.
    """

    sizes: tuple[int, ...]

    @property
    def stages(self) -> tuple[int, ...]:
        """The 0-based stage of each layer."""
        each = ((stage,) * size for stage, size in enumerate(self.sizes))
        return tuple(chain.from_iterable(each))

    def slices(self) -> Iterator[slice]:
        """The layers of each stage, as a slice of a sequence with one entry for each layer."""
        start = 0
        for size in self.sizes:
            yield slice(start, start + size)
            start += size


def written_stages(pattern: Pattern) -> Pipeline:
    """The stages that the pattern itself writes with ``|``; one stage without it."""
    return Pipeline(sizes=pattern.stages)


def pipeline_of(recipe: Recipe, pattern: Pattern) -> Pipeline:
    """The stages that the model runs on, also where the pattern has no ``|``.

    Without a ``|`` upstream cuts evenly, except for a first and a last stage whose sizes the
    configuration may give. :func:`uneven_stages` refuses layers that do not divide evenly.
    """
    ranks = recipe.parallelism.pipeline_parallel
    if len(pattern.stages) > 1 or ranks == 1:
        return written_stages(pattern)
    first, last = _end(recipe.megatron, "first"), _end(recipe.megatron, "last")
    between = max(0, ranks - len(first) - len(last))
    each = max(0, pattern.depth - sum(first) - sum(last)) // max(1, between)
    sizes: list[int] = []
    left = pattern.depth
    for size in [*first, *[each] * between, *last][:-1]:
        sizes.append(min(size, left))
        left -= sizes[-1]
    return Pipeline(sizes=(*sizes, left))


def _end(settings: Mapping[str, Any], end: str) -> list[int]:
    size = settings.get(f"num_layers_in_{end}_pipeline_stage")
    return [size] if type(size) is int else []


def uneven_stages(recipe: Recipe, pattern: Pattern) -> UpstreamForbids | None:
    """The fault that the stages do not divide evenly over the pipeline ranks; None if they do.

    Upstream's own rule: the pattern's segments must divide evenly, or its layers where it has no
    segments.
    """
    ranks = recipe.parallelism.pipeline_parallel
    count, unit = len(pattern.stages), "stages in the pattern"
    if count == 1:
        count, unit = pattern.depth, "layers"
    if count % ranks == 0:
        return None
    return UpstreamForbids(
        asked=f"pipeline-parallel = {ranks}",
        found=f"{count} {unit} do not divide evenly",
        next="change pipeline-parallel, or write the stages into the pattern with '|'",
        key="parallelism.pipeline-parallel",
    )
