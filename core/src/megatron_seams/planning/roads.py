"""The two roads to a model: Megatron's classes from Python, and its trainer's command line.

The model of a plan is the one that the classes make of its fields. Upstream's command line has
other defaults, and its trainer derives and checks more; :class:`Roads` compares what both make of
the plan and finds the words that bring them together.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import attrs

from megatron_seams.planning import activations
from megatron_seams.planning.derived import (
    BUILDERS,
    ELSEWHERE,
    decided_fields,
    is_latent,
    usual_fields,
)
from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.spelling import Spoken, spoken
from megatron_seams.upstream.config_fields import UNREAD
from megatron_seams.upstream.programs.values import Outside, Value, same
from megatron_seams.upstream.settings import NativeSettings
from megatron_seams.upstream.trainer import Outcome, Trainer

#: Field -> why the trainer's value is the run's own and not the model's.
_OF_THE_RUN: Final[Mapping[str, str]] = {
    "inference_sampling_seed": "the trainer sets it to its --seed",
}

#: Model argument -> the attribute of the parsed arguments that sets it, where another one of that
#: name does too: of the two sizes of a vocabulary only this one is taken as it is, unpadded.
_EXACT: Final[Mapping[str, str]] = {"vocab_size": "padded_vocab_size"}


@attrs.frozen(kw_only=True)
class Difference:
    """A setting that the two roads have differently.

    Attributes:
        key: The field or argument.
        trainer: Its value on the trainer's road, with what it comes from.
        wanted: Its value in the model.
    """

    key: str
    trainer: Value
    wanted: Any


@attrs.frozen(kw_only=True, eq=False)
class Roads:
    """The roads to one plan's model.

    Attributes:
        plan: The model.
        settings: Of the Megatron that it was planned against.
        trainer: Of the same.
        model: Whether the arguments of the model's constructor are compared too.
    """

    plan: Plan
    settings: NativeSettings
    trainer: Trainer
    model: bool = True

    @functools.cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe's settings, as upstream's programs have them."""
        return {
            key: self._value(key, value)
            for key, value in self.plan.megatron.items()
            if key != "multi_latent_attention"
        }

    @functools.cached_property
    def classes(self) -> Outcome:
        """The outcome of the plan's fields in Megatron's classes."""
        usual = usual_fields(self.plan, self.plan.megatron)
        usual = {key: self._value(key, value) for key, value in usual.items()}
        unset = dict.fromkeys(self._unset, UNREAD)
        given = {**usual, **unset, **self.recipe, **decided_fields(self.plan)}
        known = self.settings.config_fields
        fields = {key: value for key, value in given.items() if key in known}
        return self.trainer.of_fields(fields, latent=is_latent(self.plan))

    @functools.cached_property
    def _defaults(self) -> Mapping[str, Any]:
        return self.trainer.defaults(self.settings.flags.values())

    @functools.cached_property
    def _plain(self) -> Outcome:
        """The trainer's outcome for the plan's layers alone, without any setting."""
        return self.of_words(())

    def of_words(self, words: Iterable[Spoken]) -> Outcome:
        """The trainer's outcome for these words, with its defaults for the rest."""
        parsed = dict(self._defaults)
        parsed |= {name: value for name, (_, value) in _plan_keys(self.plan).items()}
        for each in words:
            value = self.trainer.parsed(each.flag, each.values) if each.values else each.sets
            parsed[each.flag.dest] = value
        return self.trainer.of_arguments(parsed, model=self.model)

    def words(self, key: str, value: Any, of: str | None = None) -> Spoken | str:
        """The words that set one field or argument; as text, why there are none."""
        reasons = []
        for dest, opposite in self._attributes(key):
            flags = self.settings.of_dest(dest)
            if flags:
                words = spoken(flags, not value if opposite else value, of)
                if isinstance(words, Spoken):
                    return words
                reasons.append(words)
        return reasons[0] if reasons else self._without_flag(key)

    def _attributes(self, key: str) -> Iterator[tuple[str, bool]]:
        """The attributes of the parsed arguments that may set ``key``, each with its polarity."""
        if key in _EXACT:
            yield _EXACT[key], False
        yield key, False
        found = self._plain.arguments.get(key) or self._plain.fields.get(key)
        for dest in sorted(found.origin.data) if found else ():
            if dest != key:
                before = self._defaults.get(dest)
                flipped = isinstance(before, bool) and isinstance(found and found.value, bool)
                yield dest, bool(flipped and found and found.value != before)

    def _without_flag(self, key: str) -> str:
        if key in _OF_THE_RUN:
            return f"its command line has no flag for it: {_OF_THE_RUN[key]}"
        found = self._plain.fields.get(key)
        made = "" if found is None or found.value is UNREAD else f", and makes it {found.value!r}"
        return f"its command line has no flag for it{made}"

    def differences(self, outcome: Outcome) -> tuple[Difference, ...]:
        """The settings that differ for certain, in the order of the configuration's fields."""
        found = []
        for key, one, other in self._compared(outcome):
            if key in _OF_THE_RUN or key in self.required or same(one.value, other) is not False:
                continue
            if one.value is None and other is False:
                continue  # a switch that nothing has touched
            found.append(Difference(key=key, trainer=one, wanted=other))
        return tuple(found)

    def agrees(self, key: str, outcome: Outcome) -> bool:
        """Whether both roads have the same value for certain."""
        compared = [same(one.value, two) for k, one, two in self._compared(outcome) if k == key]
        return bool(compared) and all(each is True for each in compared)

    def _compared(self, outcome: Outcome) -> Iterator[tuple[str, Value, Any]]:
        for key, value in self.classes.fields.items():
            if key in self.settings.config_fields and key not in BUILDERS:
                yield key, outcome.fields.get(key, Value(UNREAD)), value.value
        for key, default in self.settings.model_arguments.items():
            if key in outcome.arguments and key not in BUILDERS:
                yield key, outcome.arguments[key], self.recipe.get(key, default)

    def decided(self, outcome: Outcome) -> frozenset[str]:
        """The attributes of the parsed arguments that the plan decides, by words or by defaults."""
        names: set[str] = set(_plan_keys(self.plan))
        for key, value in {**outcome.fields, **outcome.arguments}.items():
            if key not in self.required:
                names |= {key, *value.origin.all}
        for key in self.required:
            names -= {dest for dest, _ in self._attributes(key)}
        return frozenset(names)

    @functools.cached_property
    def required(self) -> frozenset[str]:
        """The settings that have no default, and that the recipe does not set."""
        without = {
            key
            for key, default in self._known.items()
            if default is UNREAD and key not in self.recipe and not self._has_default(key)
        }
        return frozenset((without | self._unset) - ELSEWHERE.keys())

    @functools.cached_property
    def _unset(self) -> frozenset[str]:
        """The sizes of which the classes' default is 0 and the trainer has none."""
        return (
            frozenset(
                key
                for key, default in self._known.items()
                if type(default) is int and default == 0 and self._defaults.get(key, 0) is None
            )
            - self.recipe.keys()
        )

    @functools.cached_property
    def _known(self) -> Mapping[str, Any]:
        return {**self.settings.config_fields, **self.settings.model_arguments}

    @functools.cached_property
    def spelled_out(self) -> frozenset[str]:
        """The fields and attributes that the recipe's layers, parallelism and settings decide.

        Parallelism that is left at 1 is left open.
        """
        sizes = _plan_keys(self.plan)
        spread = {name for name, (_, value) in sizes.items() if value not in (1, False)}
        usual = usual_fields(self.plan, self.plan.megatron).keys()
        return frozenset((ELSEWHERE.keys() - sizes.keys()) | spread | usual | self.recipe.keys())

    def plan_key(self, dest: str) -> tuple[str, Any] | None:
        """The recipe's key of layers or parallelism that sets an attribute, with its value."""
        return _plan_keys(self.plan).get(dest)

    def field_of(self, dest: str) -> str | None:
        """The field or argument that an attribute of the parsed arguments sets, if one does."""
        if dest in self._known:
            return dest
        return next(
            (key for key in self._known if dest in [name for name, _ in self._attributes(key)]),
            None,
        )

    def default(self, key: str) -> Any:
        """The value that a setting has where the recipe does not set it."""
        found = self.classes.fields.get(key)
        return self.settings.model_arguments.get(key) if found is None else found.value

    def _has_default(self, key: str) -> bool:
        value = self.classes.fields.get(key)
        return value is not None and value.value is not UNREAD

    def _value(self, key: str, value: Any) -> Any:
        if key == activations.KEYS[0] and value in activations.ACTIVATIONS:
            place = activations.ACTIVATIONS[value]
            return Outside(place) if isinstance(place, str) else self.trainer.named(*place)
        return self.trainer.value(self.settings.types(key), value)


def _plan_keys(plan: Plan) -> dict[str, tuple[str, Any]]:
    """Attribute of the parsed arguments -> the recipe's key of layers or parallelism, its value."""
    spread = plan.parallelism
    return {
        "hybrid_layer_pattern": ("model.pattern", lowered_pattern(plan)),
        "multi_latent_attention": ("model.pattern", is_latent(plan)),
        "tensor_model_parallel_size": ("parallelism.tensor-parallel", spread.tensor_parallel),
        "pipeline_model_parallel_size": ("parallelism.pipeline-parallel", spread.pipeline_parallel),
        "expert_model_parallel_size": ("parallelism.expert-parallel", spread.expert_parallel),
        "context_parallel_size": ("parallelism.context-parallel", spread.context_parallel),
        "sequence_parallel": ("parallelism.sequence-parallel", spread.sequence_parallel),
    }
