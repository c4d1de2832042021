"""A plan as arguments of upstream's own command line, with no flag that its Megatron lacks.

The arguments are the model: what upstream's trainer makes of them has the configuration and the
parameters of the model that is built from the plan.
"""

import shlex
from collections.abc import Iterable, Iterator
from typing import Final

import attrs

from megatron_seams.errors import NoArgument, Refusal, SeamsError
from megatron_seams.planning import activations
from megatron_seams.planning.derived import is_latent
from megatron_seams.planning.indexer import untrained, waiting_ranks
from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.planning.needs import Need, needs
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.recipe_words import recipe_words
from megatron_seams.planning.refusals import refusals
from megatron_seams.planning.roads import Roads
from megatron_seams.planning.spelling import Spoken
from megatron_seams.recipes.pipeline import one_rank
from megatron_seams.upstream.settings import NativeSettings
from megatron_seams.upstream.trainer import Outcome

#: The values of ``--spec``: a module, and the name in it of a stack that is held to a receipt.
SPEC: Final = ("megatron_seams.runtime.launch", "stack_spec")

#: The flag for the layers, and the one that it replaced in 0.17.
_PATTERN: Final = "--hybrid-layer-pattern"
_OLDER_PATTERN: Final = "--hybrid-override-pattern"

_PARALLEL: Final = {
    "tensor_parallel": "--tensor-model-parallel-size",
    "pipeline_parallel": "--pipeline-model-parallel-size",
    "expert_parallel": "--expert-model-parallel-size",
    "context_parallel": "--context-parallel-size",
}


@attrs.frozen(kw_only=True)
class Arguments:
    """Words for upstream's command line, and notes on what they leave out.

    Attributes:
        groups: Each flag with its values, in order.
        notes: One sentence each.
        needs: What upstream's trainer asks for besides.
    """

    groups: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    needs: tuple[Need, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """All words, unquoted."""
        return tuple(word for group in self.groups for word in group)

    def for_shell(self) -> str:
        """One line that a shell splits into exactly :attr:`words`."""
        return shlex.join(self.words)


def native_arguments(plan: Plan, settings: NativeSettings) -> Arguments:
    """The arguments of a plan.

    Args:
        plan: The model.
        settings: The flags of the Megatron that it was planned against, and its trainer.

    Raises:
        Refusal: With a :class:`NoArgument` for everything that this Megatron has no flag for, or an
            :class:`UpstreamForbids` for stages that one pipeline rank is to have, for pipeline
            ranks that would wait for ever, and for everything else that its trainer refuses.
    """
    layers = (*_of_layers(plan), *_of_parallelism(plan))
    faults: list[SeamsError] = [
        _no_flag(plan, group[0], settings)
        for group in layers
        if group[0].partition("=")[0] not in settings.flags
    ]
    faults += filter(None, [one_rank(plan.parallelism, plan.pattern)])
    faults += waiting_ranks(plan)
    if faults or settings.trainer is None:
        raise Refusal(faults)
    roads = Roads(plan=plan, settings=settings, trainer=settings.trainer)
    of_recipe = tuple(recipe_words(roads))
    words = [each for _, each in of_recipe if isinstance(each, Spoken)]
    settled = _settled(roads, words)
    outcome = roads.of_words((*words, *settled))
    faults += _unreached(roads, of_recipe, outcome)
    if not faults:
        faults += refusals(roads, (*words, *settled), outcome)
    if faults:
        raise Refusal(faults)
    groups = [*layers, *(each.words for each in words), *(each.words for each in settled)]
    groups.append(("--spec", *SPEC))
    return Arguments(
        groups=tuple(groups),
        notes=(*_notes(plan, roads), *untrained(plan), *_notes_on_roads(roads, settled, outcome)),
        needs=needs(roads, outcome),
    )


def _of_layers(plan: Plan) -> Iterator[tuple[str, ...]]:
    pattern = lowered_pattern(plan)
    # A value that begins like a flag is taken for one, unless it is joined to its own.
    yield (f"{_PATTERN}={pattern}",) if pattern.startswith("-") else (_PATTERN, pattern)
    if is_latent(plan):
        yield ("--multi-latent-attention",)


def _of_parallelism(plan: Plan) -> Iterator[tuple[str, ...]]:
    for name, flag in _PARALLEL.items():
        size = getattr(plan.parallelism, name)
        if size > 1:
            yield flag, str(size)
    if plan.parallelism.sequence_parallel:
        yield ("--sequence-parallel",)


def _settled(roads: Roads, words: Iterable[Spoken]) -> tuple[Spoken, ...]:
    """Words for the settings that the recipe leaves to defaults, where the two roads' differ."""
    found: list[Spoken] = []
    taken = {each.flag.dest for each in words}
    for difference in roads.differences(roads.of_words(words)):
        if difference.key in roads.plan.megatron:
            continue
        group = roads.words(difference.key, difference.wanted)
        if isinstance(group, Spoken) and group.flag.dest not in taken:
            found.append(group)
            taken.add(group.flag.dest)
    return tuple(found)


def _unreached(
    roads: Roads, of_recipe: Iterable[tuple[str, Spoken | str]], outcome: Outcome
) -> Iterator[NoArgument]:
    """A fault for each setting of the recipe that upstream's trainer does not come to."""
    reasons = {key: each for key, each in of_recipe if isinstance(each, str)}
    differing = {difference.key: difference for difference in roads.differences(outcome)}
    for key in roads.plan.megatron:
        if key in reasons and not roads.agrees(key, outcome):
            yield _no_argument(roads.plan, key, reasons[key])
        elif key in differing:
            made = differing[key].trainer.value
            yield _no_argument(roads.plan, key, f"upstream's trainer makes it {made!r}")


def _no_argument(plan: Plan, key: str, found: str) -> NoArgument:
    advice = "leave it out of the recipe, or build the model from Python, where it is a field"
    if key in activations.KEYS:
        given = plan.megatron
        asked = str(given.get("activation_func", "gelu")), bool(given.get("gated_linear_unit"))
        advice = f"set {activations.advice(*asked)}, or build the model from Python"
    return NoArgument(
        asked=f"[megatron] {key} = {plan.megatron[key]!r} as an argument of megatron-core "
        f"{plan.surface.version}",
        found=found,
        next=advice,
        subject=key,
        key=f"megatron.{key}",
    )


def _no_flag(plan: Plan, flag: str, settings: NativeSettings) -> NoArgument:
    why = "" if settings.flags else f" ({'; '.join(settings.unread)})"
    name = flag.partition("=")[0]
    found = f"the command line of megatron-core {plan.surface.version} does not have it{why}"
    advice = "plan against a Megatron with its trainer: a checkout, or a release from 0.17 on"
    if name == _PATTERN and _OLDER_PATTERN in settings.flags:
        found += f"; its flag for the layers is {_OLDER_PATTERN}, with their number by --num-layers"
        advice = "give those two by hand, or plan against a release from 0.17 on"
    return NoArgument(asked=f"{name}, for {plan.name}", found=found, next=advice, subject=name)


def _notes(plan: Plan, roads: Roads) -> Iterator[str]:
    by_seam: dict[str, list[int]] = {}
    for number, custom in plan.custom_layers().items():
        by_seam.setdefault(custom.seam.name, []).append(number)
    for name, numbers in sorted(by_seam.items()):
        custom = plan.custom_layers()[numbers[0]]
        # Upstream's num_floating_point_operations counts layers by get_hybrid_layer_counts.
        yield (
            f"seam {name} ({custom.owner}) builds layers {', '.join(map(str, numbers))}, which the "
            f"pattern spells {custom.symbol!r}: upstream's FLOP count, and with it TFLOP/s per "
            f"GPU, takes them for {custom.symbol!r} layers, and so do its layer counts"
        )
    for feature in plan.features:
        yield (
            f"feature {feature.family} at {feature.place}, by seam {feature.seam.name} "
            f"({feature.seam.owner}): upstream's FLOP count does not know it"
        )
    yield (
        f"{'the seams and their options travel in' if plan.seams else 'the run is held to'} the "
        "receipt: keep it in a file and export MEGATRON_SEAMS_RECEIPT=FILE on every rank; a run "
        "without it stops"
    )
    if not plan.seams:
        native = roads.trainer.native_spec
        instead = f"with --spec {' '.join(native)}" if native else "without --spec"
        yield (
            f"every layer is native: {instead}, the trainer builds them without megatron-seams, "
            "and nothing compares them with the plan"
        )


def _notes_on_roads(roads: Roads, settled: Iterable[Spoken], outcome: Outcome) -> Iterator[str]:
    names = [each.words[0] for each in settled]
    if names:
        yield (
            f"{', '.join(names)}: the recipe does not set these; the trainer's own defaults are "
            "others than those of Megatron's classes, which the model has. Set a field in "
            "[megatron] to change it on every road"
        )
    for difference in roads.differences(outcome):
        if difference.key not in roads.plan.megatron:
            yield (
                f"upstream's trainer makes {difference.key} {difference.trainer.value!r}, and no "
                f"flag makes it {difference.wanted!r} as Megatron's class does"
            )
