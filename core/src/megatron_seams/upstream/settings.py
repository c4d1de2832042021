"""The settings of one Megatron, read from its source: fields, model arguments and flags."""

import ast
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from megatron_seams.upstream.argument_parser import read_command_line
from megatron_seams.upstream.config_fields import ClassReader, NotUnderstoodError, literal
from megatron_seams.upstream.flags import Flag
from megatron_seams.upstream.source import MegatronSource

_CONFIG: Final = "core/transformer/transformer_config.py"
_PLAIN, _LATENT = "TransformerConfig", "MLATransformerConfig"
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
        unread: Why there may be more, one sentence each.
        fields_unread: Those of them about the configuration's fields and the model's arguments.
    """

    config_fields: Mapping[str, Any] = attrs.field(factory=dict)
    model_arguments: Mapping[str, Any] = attrs.field(factory=dict)
    flags: Mapping[str, Flag] = attrs.field(factory=dict)
    unread: tuple[str, ...] = ()
    fields_unread: tuple[str, ...] = ()

    def knows(self, key: str) -> bool:
        """Whether a recipe's ``[megatron]`` may set ``key``."""
        return key in self.config_fields or key in self.model_arguments

    def nearest(self, key: str) -> tuple[str, ...]:
        """The real names most like ``key``, for messages; never taken for it."""
        names = sorted({*self.config_fields, *self.model_arguments})
        return tuple(difflib.get_close_matches(key, names, n=3))

    def of_dest(self, dest: str) -> tuple[Flag, ...]:
        """The flags whose value is stored as ``dest``."""
        return tuple(dict.fromkeys(flag for flag in self.flags.values() if flag.dest == dest))


def read_settings(source: MegatronSource) -> NativeSettings:
    """Read the settings from the source of a Megatron.

    Raises:
        SurfaceUnknown: A file is not Python that this interpreter can read.
    """
    reader = ClassReader(source)
    plain, plain_unread = _fields(reader, _PLAIN)
    latent, latent_unread = _fields(reader, _LATENT)
    arguments = _arguments(reader)
    model_unread = (
        () if arguments else ("the arguments of the hybrid model: no class of it is found",)
    )
    fields_unread = (*plain_unread, *latent_unread, *model_unread)
    line = read_command_line(source, reader)
    return NativeSettings(
        config_fields={**latent, **plain},
        model_arguments=arguments,
        flags=line.flags,
        unread=(*fields_unread, *line.unread),
        fields_unread=fields_unread,
    )


def _fields(reader: ClassReader, name: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The fields of a dataclass, name -> default, and why they could not be read."""
    located = reader.find(_CONFIG, name)
    if located is None:
        return {}, (f"the fields of {name}: megatron/{_CONFIG} has no such class, or several",)
    try:
        found = reader.fields(located)
    except NotUnderstoodError as error:
        return {}, (f"the fields of {name}: {error}",)
    return {field.name: field.default for field in found.values()}, ()


def _arguments(reader: ClassReader) -> dict[str, Any]:
    """The parameters of the hybrid model's constructor: name -> default."""
    for path, name in _MODEL:
        located = reader.find(path, name)
        for node in located.node.body if located else []:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                given = node.args
                named = [argument.arg for argument in (*given.posonlyargs, *given.args)]
                defaults = _right_aligned(given.defaults, len(named)) | {
                    len(named) + index: default for index, default in enumerate(given.kw_defaults)
                }
                named += [argument.arg for argument in given.kwonlyargs]
                return {
                    argument: literal(defaults.get(index))
                    for index, argument in enumerate(named)
                    if index > 0  # self
                }
    return {}


def _right_aligned(defaults: Iterable[ast.expr], count: int) -> dict[int, ast.expr | None]:
    """Index of a parameter -> its default, where only the last of ``count`` have one."""
    listed = list(defaults)
    return {count - len(listed) + index: default for index, default in enumerate(listed)}
