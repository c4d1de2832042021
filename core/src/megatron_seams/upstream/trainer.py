"""The values that upstream's trainer derives from its arguments, and its configuration from fields.

Upstream's command line has other defaults than its classes, checks arguments, changes some and
derives others from them. All of it is followed on its source: what it makes of arguments here is
what it makes of them in a run, as far as that is known.
"""

import ast
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs

from megatron_seams.upstream.annotations import DTYPES, ValueType
from megatron_seams.upstream.ast_queries import module_of
from megatron_seams.upstream.config_fields import UNREAD, ClassReader, NotUnderstoodError
from megatron_seams.upstream.flags import ARGUMENTS, Flag
from megatron_seams.upstream.programs.calls import method_of
from megatron_seams.upstream.programs.interpreter import Fault, Interpreter
from megatron_seams.upstream.programs.values import Defined, Origin, Outside, Record, Value

CONFIG: Final = "core/transformer/transformer_config.py"
PLAIN, LATENT = "TransformerConfig", "MLATransformerConfig"
_TRANSLATION: Final = "training/argument_utils.py"
_BUILDER: Final = ("training/models/hybrid.py", "HybridModelBuilder")
_TRAINING: Final = "training/training.py"

#: Upstream's own stack, newest name first.
_NATIVE_SPECS: Final = (
    ("core/models/hybrid/hybrid_layer_specs.py", "hybrid_stack_spec"),
    ("core/models/mamba/mamba_layer_specs.py", "mamba_stack_spec"),
)

#: Model argument -> the attribute of the parsed arguments that a trainer's own script passes, and
#: whether it passes its opposite. The scripts of the releases that build the model there (0.17,
#: 0.18: mamba_builders.py, hybrid_builders.py) are in no wheel.
_SCRIPT: Final[Mapping[str, tuple[str, bool]]] = MappingProxyType(
    {
        "vocab_size": ("padded_vocab_size", False),
        "max_sequence_length": ("max_position_embeddings", False),
        "fp16_lm_cross_entropy": ("fp16_lm_cross_entropy", False),
        "share_embeddings_and_output_weights": ("untie_embeddings_and_output_weights", True),
        "position_embedding_type": ("position_embedding_type", False),
        "rotary_percent": ("rotary_percent", False),
        "rotary_base": ("rotary_base", False),
    }
)


@attrs.frozen(kw_only=True)
class Outcome:
    """The values that upstream derives from arguments or from fields.

    Attributes:
        fields: Field of the configuration -> its value after the configuration's own checks.
        arguments: Argument of the model's constructor -> its value; empty for fields alone.
        faults: What upstream refuses, in its order.
    """

    fields: Mapping[str, Value] = attrs.field(factory=dict)
    arguments: Mapping[str, Value] = attrs.field(factory=dict)
    faults: tuple[Fault, ...] = ()


@attrs.frozen(kw_only=True, eq=False)
class Trainer:
    """The trainer of one Megatron.

    Attributes:
        reader: Of that Megatron.
    """

    reader: ClassReader = attrs.field(repr=False)

    @property
    def is_there(self) -> bool:
        """Whether this Megatron has a trainer that checks arguments."""
        return self.reader.definition(ARGUMENTS, "validate_args") is not None

    @property
    def wants_spec(self) -> bool:
        """Whether its scripts build the model themselves, and only by a ``--spec``.

        Where ``pretrain`` can do without a model provider it builds the model from a configuration,
        which has upstream's own stack by default.
        """
        match self.reader.definition(_TRAINING, "pretrain"):
            case _, ast.FunctionDef(args=named):
                required = [*named.posonlyargs, *named.args][: -len(named.defaults) or None]
                return "model_provider" in [argument.arg for argument in required]
        return False

    @property
    def native_spec(self) -> tuple[str, str] | None:
        """The module and name of upstream's own stack, where its scripts ask for one."""
        if not self.wants_spec:
            return None
        for path, name in _NATIVE_SPECS:
            if self.reader.definition(path, name) is not None:
                return module_of(path), name
        return None

    def defaults(self, flags: Iterable[Flag]) -> dict[str, Any]:
        """The attributes of the parsed arguments where no flag is given."""
        program = Interpreter(self.reader)
        found: dict[str, Any] = {}
        for flag in flags:
            value = flag.default
            if value is UNREAD:
                value = program.constant(flag.path, flag.expression)
            # argparse keeps the first default that two flags declare for one attribute.
            found.setdefault(flag.dest, value)
        return found

    def parsed(self, flag: Flag, words: tuple[str, ...]) -> Any:
        """The parser's value for a flag's words; UNREAD if that is not known."""
        found = [self._converted(flag, word) for word in words]
        return found if flag.nargs in ("+", "*") or isinstance(flag.nargs, int) else found[0]

    def _converted(self, flag: Flag, word: str) -> Any:
        plain = {None: str, "str": str, "int": int, "float": float}
        if flag.type in plain:
            try:
                return plain[flag.type](word)
            except ValueError:
                return UNREAD
        program = Interpreter(self.reader)
        match program.top_level(flag.path, str(flag.type)):
            case Defined(node=ast.ClassDef()) as enum:
                return program.class_attribute(enum, word)
            case Defined() as function:
                return program.run(function, word).value
        return UNREAD

    def named(self, path: str, name: str) -> Any:
        """The value of a name at the top of a file."""
        return Interpreter(self.reader).top_level(path, name)

    def value(self, types: Iterable[ValueType], given: Any) -> Any:
        """A recipe's value as upstream's programs have it: a member or a type by its name."""
        for each in types:
            if enum := each.named("enum", given):
                program = Interpreter(self.reader)
                found = program.top_level(*(enum.enum or ("", "")))
                return (
                    program.class_attribute(found, given) if isinstance(found, Defined) else UNREAD
                )
            if each.named("dtype", given):
                return Outside(f"torch.{DTYPES[given]}")
            if each.named("tuple", given):
                return tuple(given)
        return list(given) if isinstance(given, list | tuple) else given

    def of_arguments(self, parsed: Mapping[str, Any], *, model: bool = True) -> Outcome:
        """The trainer's outcome for parsed arguments.

        Args:
            parsed: The attributes of the parsed arguments; UNREAD for one that is not decided.
            model: Whether to follow it to the model's constructor too.
        """
        program = Interpreter(self.reader)
        given = {name: Value(value, Origin(frozenset({name}))) for name, value in parsed.items()}
        args = Record(given)
        _run(program, self._function(program, ARGUMENTS, "validate_args"), args)
        made = self._translated(program, "core_transformer_config_from_args", args)
        fields = self._constructed(program, made)
        arguments = self._model(program, args, fields) if model else {}
        return Outcome(fields=fields, arguments=arguments, faults=_once(program.faults))

    def of_fields(self, given: Mapping[str, Any], *, latent: bool) -> Outcome:
        """A configuration class's outcome for its fields.

        Args:
            given: Field -> value; the others have their defaults.
            latent: Whether it is the class for latent attention.
        """
        program = Interpreter(self.reader)
        cls = program.top_level(CONFIG, LATENT if latent else PLAIN)
        values = {name: Value(value, Origin(frozenset({name}))) for name, value in given.items()}
        made = Record(values, cls=cls if isinstance(cls, Defined) else None)
        if made.cls is not None:
            defaults = self._defaults(program, made.cls)
            for name, default in defaults.items():
                made.values.setdefault(name, Value(default.value, Origin(frozenset({name}))))
        fields = self._constructed(program, made)
        return Outcome(fields=fields, faults=_once(program.faults))

    def _function(self, program: Interpreter, *places: str) -> Defined | None:
        *paths, name = places
        for path in paths:
            found = program.top_level(path, name)
            if isinstance(found, Defined):
                return found
        return None

    def _translated(self, program: Interpreter, name: str, *given: Any) -> Record:
        function = self._function(program, _TRANSLATION, ARGUMENTS, name)
        made = _run(program, function, *given)
        return made if isinstance(made, Record) else Record({}, closed=False)

    def _constructed(self, program: Interpreter, made: Record) -> Mapping[str, Value]:
        """The fields of a configuration after it has checked itself."""
        if made.cls is None:
            return {}
        this = Record({**self._defaults(program, made.cls), **made.values}, cls=made.cls)
        this.closed = False
        found = method_of(program, made.cls, "__post_init__")
        if found is not None:
            program.run(found[1], this, owner=found[0])
        return this.values

    def _defaults(self, program: Interpreter, cls: Defined) -> dict[Any, Value]:
        located = self.reader.find(cls.path, cls.name)
        try:
            fields = self.reader.fields(located) if located else {}
        except NotUnderstoodError:
            return {}
        return {
            name: Value(program.constant(field.path, field.expression))
            for name, field in fields.items()
        }

    def _model(
        self, program: Interpreter, args: Record, fields: Mapping[str, Value]
    ) -> Mapping[str, Value]:
        """The arguments of the model's constructor."""
        builder = program.top_level(*_BUILDER)
        if self.wants_spec or not isinstance(builder, Defined):
            return {name: _passed(args, *source) for name, source in _SCRIPT.items()}
        config = Record(dict(fields), closed=False)
        made = self._translated(program, "hybrid_config_from_args", args, config)
        defaults = self._defaults(program, made.cls) if made.cls else {}
        model_config = Record({**defaults, **made.values}, closed=False)
        this = Record({"_model_config": Value(model_config)}, cls=builder, closed=False)
        found = method_of(program, builder, "build_model")
        result = program.run(found[1], this, owner=found[0]).value if found else UNREAD
        return result.values if isinstance(result, Record) else {}


def _run(program: Interpreter, function: Defined | None, *given: Any) -> Any:
    return UNREAD if function is None else program.run(function, *given).value


def _passed(args: Record, name: str, opposite: bool) -> Value:
    found = args.read(name)
    if opposite and isinstance(found.value, bool):
        return Value(not found.value, found.origin)
    return found


def _once(faults: list[Fault]) -> tuple[Fault, ...]:
    return tuple(dict.fromkeys(faults))
