"""A plan as arguments of upstream's own command line, with no flag that its Megatron lacks."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from megatron_seams.errors import NoArgument, Refusal, SeamsError
from megatron_seams.families import LATENT
from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.planning.plan import Plan
from megatron_seams.recipes.pipeline import one_rank
from megatron_seams.upstream.flags import Flag
from megatron_seams.upstream.settings import NativeSettings

#: The values of ``--spec`` for a plan with seams: a module, and the name of a stack in it.
SPEC: Final = ("megatron_seams.runtime.launch", "stack_spec")

#: The flag for the layers, and the one that it replaced in 0.17.
_PATTERN: Final = "--hybrid-layer-pattern"
_OLDER_PATTERN: Final = "--hybrid-override-pattern"

#: Configuration field or model argument -> the destination of its flag, where the two differ.
#: Upstream copies these one by one in `core_transformer_config_from_args` and
#: `hybrid_config_from_args`.
_RENAMED: Final = {
    "max_sequence_length": "max_position_embeddings",
    "num_moe_experts": "num_experts",
    "num_layers_in_first_pipeline_stage": "decoder_first_pipeline_num_layers",
    "num_layers_in_last_pipeline_stage": "decoder_last_pipeline_num_layers",
}

#: Activation and whether it is gated -> the flag that asks for both; `gelu` is the default.
_ACTIVATIONS: Final[Mapping[tuple[str, bool], tuple[str, ...]]] = {
    ("gelu", False): (),
    ("silu", True): ("--swiglu",),
    ("squared_relu", False): ("--squared-relu",),
    ("quick_gelu", True): ("--quick-geglu",),
}
_ACTIVATION_KEYS: Final = ("activation_func", "gated_linear_unit")

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
    """

    groups: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

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
        settings: The flags of the Megatron that it was planned against.

    Raises:
        Refusal: With a :class:`NoArgument` for everything that this Megatron has no flag for, and
            an :class:`UpstreamForbids` for stages that one pipeline rank is to have.
    """
    found = (*_of_layers(plan), *_of_parallelism(plan), *_of_settings(plan, settings))
    groups = [group for group in found if not isinstance(group, NoArgument)]
    if plan.seams:
        groups.append(("--spec", *SPEC))
    faults: list[SeamsError] = [group for group in found if isinstance(group, NoArgument)]
    faults += filter(None, [one_rank(plan.parallelism, plan.pattern)])
    faults += [_no_flag(plan, group[0], settings) for group in groups if _unknown(group, settings)]
    if faults:
        raise Refusal(faults)
    return Arguments(groups=tuple(groups), notes=tuple(_notes(plan)))


def _of_layers(plan: Plan) -> Iterator[tuple[str, ...]]:
    yield _PATTERN, lowered_pattern(plan)
    if not plan.families.isdisjoint(LATENT):
        yield ("--multi-latent-attention",)


def _of_parallelism(plan: Plan) -> Iterator[tuple[str, ...]]:
    for name, flag in _PARALLEL.items():
        size = getattr(plan.parallelism, name)
        if size > 1:
            yield flag, str(size)
    if plan.parallelism.sequence_parallel:
        yield ("--sequence-parallel",)


def _of_settings(plan: Plan, settings: NativeSettings) -> Iterator[tuple[str, ...] | NoArgument]:
    """The words for each setting of the recipe, or the fault that it has no flag."""
    wanted = {k: v for k, v in plan.megatron.items() if k != "multi_latent_attention"}
    if any(key in wanted for key in _ACTIVATION_KEYS):
        asked = wanted.get("activation_func", "gelu"), bool(wanted.get("gated_linear_unit"))
        flags = _ACTIVATIONS.get(asked)
        if flags is None:
            yield _no_argument(plan, "activation_func", f"no flag for {asked[0]}, gated or not")
        elif flags:
            yield flags
    if "num_query_groups" in wanted:
        # Without it upstream ignores the number of groups.
        yield ("--group-query-attention",)
    for key, value in wanted.items():
        if key in _ACTIVATION_KEYS:
            continue
        if key == "share_embeddings_and_output_weights":
            if not value:
                yield ("--untie-embeddings-and-output-weights",)
            continue
        words = _setting_words(key, value, settings)
        if isinstance(words, str):
            yield _no_argument(plan, key, words)
        elif words:
            yield words


def _setting_words(key: str, value: Any, settings: NativeSettings) -> tuple[str, ...] | str:
    """The words for one setting, none if it is the default; as text, why it has none."""
    flags = settings.of_dest(_RENAMED.get(key, key))
    if not flags:
        return "its command line has no flag for it"
    if isinstance(value, bool) and any(flag.sets for flag in flags):
        spelled = next((name for flag in flags if (name := flag.that_sets(value))), None)
        # A flag without a value can only set the opposite of its default.
        return (spelled,) if spelled else ()
    flag = next((flag for flag in flags if not flag.sets), None)
    words = _words(value)
    if flag is None or words is None or isinstance(value, bool):
        return f"{value!r} is no value of {' or '.join(flag.names[0] for flag in flags)}"
    if not _takes(flag, len(words)):
        return f"{flag.names[0]} does not take {len(words)} values"
    if flag.choices and not {str(choice) for choice in flag.choices} >= set(words):
        return f"{flag.names[0]} takes {', '.join(map(str, flag.choices))}"
    return (flag.names[0], *words)


def _words(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, list | tuple):
        parts = [_words(part) for part in value]
        return None if None in parts or not parts else tuple(part[0] for part in parts if part)
    return (str(value),) if isinstance(value, str | int | float) else None


def _takes(flag: Flag, count: int) -> bool:
    return count == 1 if flag.nargs in (None, "?") else flag.nargs in ("+", "*", count)


def _unknown(group: tuple[str, ...], settings: NativeSettings) -> bool:
    return group[0] not in settings.flags


def _no_argument(plan: Plan, key: str, found: str) -> NoArgument:
    return NoArgument(
        asked=f"[megatron] {key} = {plan.megatron[key]!r} as an argument of megatron-core "
        f"{plan.surface.version}"
        if key in plan.megatron
        else f"[megatron] {key} as an argument",
        found=found,
        next="leave it out of the recipe, or build the model from Python, where it is a field",
        subject=key,
        key=f"megatron.{key}",
    )


def _no_flag(plan: Plan, flag: str, settings: NativeSettings) -> NoArgument:
    why = "" if settings.flags else f" ({'; '.join(settings.unread)})"
    found = f"the command line of megatron-core {plan.surface.version} does not have it{why}"
    advice = "plan against a Megatron with its trainer: a checkout, or a release from 0.17 on"
    if flag == _PATTERN and _OLDER_PATTERN in settings.flags:
        found += f"; its flag for the layers is {_OLDER_PATTERN}, with their number by --num-layers"
        advice = "give those two by hand, or plan against a release from 0.17 on"
    return NoArgument(asked=f"{flag}, for {plan.name}", found=found, next=advice, subject=flag)


def _notes(plan: Plan) -> Iterator[str]:
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
    if plan.seams:
        yield (
            "the seams and their options travel in the receipt: keep it in a file and "
            "export MEGATRON_SEAMS_RECEIPT=FILE on every rank; a run without it stops"
        )
