"""Which configuration fields, model arguments and flags one Megatron has, read from its source."""

import ast
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from megatron_seams.dataclass_fields import UNREAD, ClassReader, NotUnderstoodError, literal
from megatron_seams.flag_reader import CommandLine, read_command_line
from megatron_seams.flags import Flag
from megatron_seams.sources import MegatronSource

_CONFIG: Final = (
    ("core/transformer/transformer_config.py", "MLATransformerConfig"),
    ("core/transformer/transformer_config.py", "TransformerConfig"),
    ("core/model_parallel_config.py", "ModelParallelConfig"),
)
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
        model_arguments: The same for the parameters of its hybrid model's constructor.
        flags: Spelling -> flag of its command line, those that it generates from dataclasses
            included. One that is not surely there is left out: a seam that waits for it then stays
            one release too long, never one too short.
        unread: Why this may not be all, one sentence each.
    """

    config_fields: Mapping[str, Any] = attrs.field(factory=dict)
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
    fields: dict[str, Any] = {}
    unread: list[str] = []
    for path, name in _CONFIG:
        located = reader.find(path, name)
        try:
            read = reader.fields(located) if located else {}
        except NotUnderstoodError as error:
            unread.append(f"the fields of {name}: {error}")
            continue
        fields |= {field.name: field.default for field in read.values()}
    line = read_command_line(source, reader)
    return NativeSettings(
        config_fields=fields,
        model_arguments=_arguments(reader),
        flags=line.flags,
        unread=(*unread, *line.unread),
    )
