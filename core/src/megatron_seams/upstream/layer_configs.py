"""The configuration classes of layers, where upstream's stack is given those instead of letters.

Such a stack asks ``isinstance(layer_config, MambaLayerConfig)`` where others compare letters. A
table beside ``Symbols`` maps each letter to its class. It tells which branch builds a symbol only
if no class stands for two letters and none derives from another: a configuration would otherwise
pass a branch that is not its own.
"""

import ast
from collections.abc import Mapping

import attrs

from megatron_seams.upstream.ast_queries import bindings, classes
from megatron_seams.upstream.source import SourceFile

#: Upstream's table, letter -> class.
CONFIG_TABLE = "LAYER_SYMBOL_TO_CONFIG_CLASS"
#: The classes that a layer's may derive from: no branch asks for them.
_ROOTS = ("MLATransformerConfig", "TransformerConfig")


@attrs.frozen(kw_only=True)
class LayerConfigs:
    """The configuration class of each layer.

    Attributes:
        constants: Class -> constant of ``Symbols``.
        modules: Class -> the module that it is imported from.
        table: The table in the source.
    """

    constants: Mapping[str, str]
    modules: Mapping[str, str]
    table: ast.Dict = attrs.field(repr=False)

    def lists(self, function: ast.FunctionDef) -> bool:
        """Whether a function returns one configuration for each letter, of the letter's class."""
        match function.body:
            case [
                *before,
                ast.Assign(targets=[ast.Name(id=made)], value=ast.Call(args=[], keywords=[])),
                ast.For(target=ast.Name(id=letter), iter=ast.Name(id=text), body=body, orelse=[]),
                ast.Return(value=ast.Name(id=returned)),
            ]:
                bound = bindings(ast.walk(function))
                plain = all(isinstance(node, ast.Expr) for node in before)
                once = bound[made] == bound[letter] == bound[text] == 1
                given = text == function.args.args[0].arg
                return plain and once and given and returned == made and _adds(body, made, letter)
        return False


def _adds(body: list[ast.stmt], made: str, letter: str) -> bool:
    """Whether statements append a configuration of the letter's class to the list ``made``."""
    match body:
        case [
            ast.Assign(targets=[ast.Name(id=config)], value=ast.Call(func=ast.Name(id="deepcopy"))),
            ast.Assign(
                targets=[ast.Attribute(value=ast.Name(id=changed), attr="__class__")],
                value=ast.Subscript(value=ast.Name(id=table), slice=ast.Name(id=key)),
            ),
            ast.Expr(
                value=ast.Call(
                    func=ast.Attribute(value=ast.Name(id=listed), attr="append"),
                    args=[ast.Name(id=added)],
                )
            ),
        ]:
            return (config, table, key, listed) == (changed, CONFIG_TABLE, letter, made) and (
                added == config
            )
        case [
            ast.Expr(
                value=ast.Call(
                    func=ast.Attribute(value=ast.Name(id=listed), attr="append"),
                    args=[
                        ast.Call(
                            func=ast.Attribute(
                                value=ast.Subscript(
                                    value=ast.Name(id=table), slice=ast.Name(id=key)
                                ),
                                attr="from_config",
                            )
                        )
                    ],
                )
            )
        ]:
            return (table, key, listed) == (CONFIG_TABLE, letter, made)
    return False


def read_layer_configs(file: SourceFile) -> LayerConfigs:
    """Read the table from upstream's allocation module.

    Raises:
        SurfaceUnknown: It is of a shape that this reader does not know.
    """
    bound = file.bound
    tables = [
        node.value
        for node in file.tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Dict)
        and CONFIG_TABLE in bindings(ast.walk(node))
    ]
    file.require(len(tables) == 1 and bound[CONFIG_TABLE] == 1, f"{CONFIG_TABLE} is not one table")
    constants: dict[str, str] = {}
    for key, value in zip(tables[0].keys, tables[0].values, strict=True):
        match key, value:
            case ast.Attribute(value=ast.Name(id="Symbols"), attr=constant), ast.Name(id=name):
                file.require(
                    name not in constants, f"{name} stands for two symbols in {CONFIG_TABLE}"
                )
                constants[name] = constant
            case _:
                raise file.unknown(
                    f"line {value.lineno} of {CONFIG_TABLE} is not a symbol and a class"
                )
    modules = {
        alias.asname or alias.name: node.module or ""
        for node in file.tree.body
        if isinstance(node, ast.ImportFrom) and node.level == 0
        for alias in node.names
        if alias.asname is None
    }
    for name in constants:
        file.require(
            name in modules and bound[name] == 1, f"{name} is not imported from one module"
        )
    return LayerConfigs(
        constants=constants,
        modules={name: modules[name] for name in constants},
        table=tables[0],
    )


def check_bases(file: SourceFile, name: str) -> None:
    """Check that a layer's configuration class derives from no other layer's.

    Args:
        file: The module that defines it.
        name: The class.

    Raises:
        SurfaceUnknown: It may.
    """
    found = [cls for cls in classes(file.tree.body, name) if cls.name == name]
    bound = file.bound
    file.require(len(found) == 1 and bound[name] == 1, f"{name} is not one class")
    bases = [base.id if isinstance(base, ast.Name) else "?" for base in found[0].bases]
    file.require(
        bool(bases) and set(bases) <= set(_ROOTS) and not found[0].keywords,
        f"{name} derives from {', '.join(bases) or 'nothing'}: another layer's branch may take it",
    )
