"""The settings of one Megatron, read from its source: fields, model arguments and flags."""

import ast
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from megatron_seams.upstream.annotations import ValueType, value_type
from megatron_seams.upstream.argument_parser import read_command_line
from megatron_seams.upstream.config_fields import (
    ClassReader,
    ConfigField,
    NotUnderstoodError,
    literal,
)
from megatron_seams.upstream.flags import Flag
from megatron_seams.upstream.source import MegatronSource
from megatron_seams.upstream.trainer import CONFIG, LATENT, PLAIN, Trainer

#: The model's class, newest name first: 0.18 keeps the older name for a class that forwards.
_MODEL: Final = (
    ("core/models/hybrid/hybrid_model.py", "HybridModel"),
    ("core/models/mamba/mamba_model.py", "MambaModel"),
)


@attrs.frozen(kw_only=True)
class NativeSettings:
    """The settings that one Megatron knows.

    Attributes:
        config_fields: Fields of its model configuration dataclasses, inherited ones included ->
            their default values, or UNREAD where one is no literal.
        model_arguments: The same for the parameters of its hybrid model's constructor.
        flags: Spelling -> flag of its command line, those that it generates from dataclasses
            included. A flag that is not surely there is left out: a seam that waits for it then
            stays one release too long, never one too short.
        annotations: Field or argument -> its annotations, each with the file that it is in: two
            where both the configuration and the model have the name.
        trainer: What makes a configuration of arguments; None where there is no source.
        unread: Why there may be more, one sentence each.
        fields_unread: Those of them about the configuration's fields and the model's arguments.
    """

    config_fields: Mapping[str, Any] = attrs.field(factory=dict)
    model_arguments: Mapping[str, Any] = attrs.field(factory=dict)
    flags: Mapping[str, Flag] = attrs.field(factory=dict)
    annotations: Mapping[str, tuple[tuple[ast.expr, str], ...]] = attrs.field(
        factory=dict, repr=False
    )
    trainer: Trainer | None = None
    unread: tuple[str, ...] = ()
    fields_unread: tuple[str, ...] = ()

    def knows(self, key: str) -> bool:
        """Whether a recipe's ``[megatron]`` may set ``key``."""
        return key in self.config_fields or key in self.model_arguments

    def types(self, key: str) -> tuple[ValueType, ...]:
        """The types that a value of ``key`` has to have, as far as they are understood."""
        if self.trainer is None:
            return ()
        reader = self.trainer.reader
        found = (value_type(node, path, reader) for node, path in self.annotations.get(key, ()))
        return tuple(dict.fromkeys(each for each in found if each is not None))

    def fed_by(self, dest: str) -> tuple[str, bool] | None:
        """The setting that the trainer computes from an attribute of the parsed arguments.

        Returns:
            Its name, and whether it is the attribute's opposite; None if there is none.
        """
        if self.trainer is None:
            return None
        parsed = self.trainer.defaults(self.flags.values())
        outcome = self.trainer.of_arguments({**parsed, "hybrid_layer_pattern": None})
        for name, value in {**outcome.arguments, **outcome.fields}.items():
            if self.knows(name) and value.origin.data == {dest}:
                before = parsed.get(dest)
                flipped = isinstance(before, bool) and isinstance(value.value, bool)
                return name, flipped and before is not value.value
        return None

    def nearest(self, key: str) -> tuple[str, ...]:
        """The real names most like ``key``, for messages; never taken for it."""
        names = sorted({*self.config_fields, *self.model_arguments})
        return tuple(difflib.get_close_matches(key, names, n=3))

    def of_dest(self, dest: str) -> tuple[Flag, ...]:
        """The flags whose value is stored as ``dest``."""
        return tuple({f.names: f for f in self.flags.values() if f.dest == dest}.values())


def read_settings(source: MegatronSource) -> NativeSettings:
    """Read the settings from the source of a Megatron.

    Raises:
        SurfaceUnknown: A file is not Python that this interpreter can read.
    """
    reader = ClassReader(source)
    plain, plain_unread = _fields(reader, PLAIN)
    latent, latent_unread = _fields(reader, LATENT)
    line, arguments = read_command_line(source, reader), _arguments(reader)
    model_unread = (
        () if arguments else ("the arguments of the hybrid model: no class of it is found",)
    )
    fields_unread = (*plain_unread, *latent_unread, *model_unread)
    fields = {**latent, **plain}
    annotations: dict[str, tuple[tuple[ast.expr, str], ...]] = {
        name: ((field.annotation, field.path),) for name, field in fields.items()
    }
    for name, argument in arguments.items():
        if argument.annotation is not None:
            known = annotations.get(name, ())
            annotations[name] = (*known, (argument.annotation, argument.path))
    return NativeSettings(
        config_fields={name: field.default for name, field in fields.items()},
        model_arguments={name: argument.default for name, argument in arguments.items()},
        flags=line.flags,
        annotations=annotations,
        trainer=Trainer(reader=reader),
        unread=(*fields_unread, *line.unread),
        fields_unread=fields_unread,
    )


def _fields(reader: ClassReader, name: str) -> tuple[Mapping[str, ConfigField], tuple[str, ...]]:
    """The fields of a dataclass by name, and why they could not be read."""
    located = reader.find(CONFIG, name)
    if located is None:
        return {}, (f"the fields of {name}: megatron/{CONFIG} has no such class, or several",)
    try:
        return reader.fields(located), ()
    except NotUnderstoodError as error:
        return {}, (f"the fields of {name}: {error}",)


@attrs.frozen(kw_only=True)
class _Argument:
    """A parameter of a constructor, and the file that it is in."""

    default: Any
    annotation: ast.expr | None
    path: str


def _arguments(reader: ClassReader) -> dict[str, _Argument]:
    """The parameters of the hybrid model's constructor, by name."""
    for path, name in _MODEL:
        located = reader.find(path, name)
        for node in located.node.body if located else []:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                named = [*node.args.posonlyargs, *node.args.args]
                defaults = _right_aligned(node.args.defaults, len(named)) | {
                    len(named) + index: default
                    for index, default in enumerate(node.args.kw_defaults)
                }
                return {
                    argument.arg: _Argument(
                        default=literal(defaults.get(index)),
                        annotation=argument.annotation,
                        path=path,
                    )
                    for index, argument in enumerate([*named, *node.args.kwonlyargs])
                    if index > 0  # self
                }
    return {}


def _right_aligned(defaults: Iterable[ast.expr], count: int) -> dict[int, ast.expr | None]:
    """Index of a parameter -> its default, where only the last of ``count`` have one."""
    listed = list(defaults)
    return {count - len(listed) + index: default for index, default in enumerate(listed)}
