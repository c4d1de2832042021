"""Which configuration fields, model arguments and flags one Megatron has, read from its source."""

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
#: The model's class, newest name first: 0.18 keeps the older name for one that passes on.
_MODEL: Final = (
    ("core/models/hybrid/hybrid_model.py", "HybridModel"),
    ("core/models/mamba/mamba_model.py", "MambaModel"),
)


@attrs.frozen(kw_only=True)
class NativeSettings:
    """The names that this Megatron knows.

    Attributes:
        config_fields: Fields of its model configuration dataclasses, inherited ones included ->
            their default values, or UNREAD where one is no literal.
        latent_fields: Those that the configuration for latent attention adds, or gives another
            default.
        model_arguments: The same for the parameters of its hybrid model's constructor.
        flags: Spelling -> flag of its command line, those that it generates from dataclasses
            included. One that is not surely there is left out: a seam that waits for it then stays
            one release too long, never one too short.
        unread: Why this may not be all, one sentence each.
    """

    config_fields: Mapping[str, Any] = attrs.field(factory=dict)
    latent_fields: Mapping[str, Any] = attrs.field(factory=dict)
    model_arguments: Mapping[str, Any] = attrs.field(factory=dict)
    flags: Mapping[str, Flag] = attrs.field(factory=dict)
    unread: tuple[str, ...] = ()

    def knows(self, key: str) -> bool:
        """Whether a recipe's ``[megatron]`` may set ``key``."""
        return key in self.config_fields or key in self.model_arguments

    def nearest(self, key: str) -> tuple[str, ...]:
        """The real names that look most like ``key``: information, never applied."""
        names = sorted({*self.config_fields, *self.model_arguments})
        return tuple(difflib.get_close_matches(key, names, n=3))

    def of_dest(self, dest: str) -> tuple[Flag, ...]:
        """The flags whose value goes by the name ``dest``."""
        return tuple(dict.fromkeys(flag for flag in self.flags.values() if flag.dest == dest))


def read_settings(source: MegatronSource) -> NativeSettings:
    """Read the names from the source of a Megatron.

    Raises:
        SurfaceUnknown: A file is not Python that this interpreter can read.
    """
    reader = ClassReader(source)
    unread: list[str] = []
    plain, latent = (_fields(reader, name, unread) for name in (_PLAIN, _LATENT))
    line = read_command_line(source, reader)
    return NativeSettings(
        config_fields={**latent, **plain},
        latent_fields={
            name: default
            for name, default in latent.items()
            if name not in plain or plain[name] != default
        },
        model_arguments=_arguments(reader),
        flags=line.flags,
        unread=(*unread, *line.unread),
    )


def _fields(reader: ClassReader, name: str, unread: list[str]) -> dict[str, Any]:
    located = reader.find(_CONFIG, name)
    try:
        found = reader.fields(located) if located else {}
    except NotUnderstoodError as error:
        unread.append(f"the fields of {name}: {error}")
        return {}
    return {field.name: field.default for field in found.values()}


def _arguments(reader: ClassReader) -> dict[str, Any]:
    """The parameters of the hybrid model's constructor with their defaults."""
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
    listed = list(defaults)
    return {count - len(listed) + index: default for index, default in enumerate(listed)}
