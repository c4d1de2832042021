"""Which configuration fields, model arguments and flags one Megatron has, read from its source."""

import ast
from collections.abc import Iterator

import attrs

from megatron_seams.sources import MegatronSource

_CONFIG = ("core/model_parallel_config.py", "core/transformer/transformer_config.py")
_MODEL = ("core/models/hybrid/hybrid_model.py", "core/models/mamba/mamba_model.py")
_FLAGS = "training/arguments.py"


@attrs.frozen(kw_only=True)
class NativeSettings:
    """The names that this Megatron knows.

    Attributes:
        config_fields: Fields of its model configuration dataclasses.
        model_arguments: Parameters of its hybrid model's constructor.
        flags: Command-line flags spelled out in its argument parser. Flags that it generates from
            dataclasses are not seen: a seam then stays one release too long, never one too short.
    """

    config_fields: frozenset[str] = frozenset()
    model_arguments: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()

    def knows(self, key: str) -> bool:
        """Whether a recipe's ``[megatron]`` may set ``key``."""
        return key in self.config_fields or key in self.model_arguments


def read_settings(source: MegatronSource) -> NativeSettings:
    """Read the names from the source of a Megatron.

    Raises:
        SurfaceUnknown: A file is not Python that this interpreter can read.
    """
    return NativeSettings(
        config_fields=frozenset(name for path in _CONFIG for name in _fields(source, path)),
        model_arguments=frozenset(name for path in _MODEL for name in _arguments(source, path)),
        flags=frozenset(_flags(source)),
    )


def _classes(source: MegatronSource, path: str) -> Iterator[ast.ClassDef]:
    tree = source.parse(path)
    for node in tree.body if tree else []:
        if isinstance(node, ast.ClassDef):
            yield node


def _fields(source: MegatronSource, path: str) -> Iterator[str]:
    for cls in _classes(source, path):
        for node in cls.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id


def _arguments(source: MegatronSource, path: str) -> Iterator[str]:
    for cls in _classes(source, path):
        for node in cls.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                yield from (argument.arg for argument in node.args.args[1:])


def _flags(source: MegatronSource) -> Iterator[str]:
    tree = source.parse(_FLAGS)
    for node in ast.walk(tree) if tree else []:
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=arguments):
                for argument in arguments:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield argument.value
