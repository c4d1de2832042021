"""The classes of configuration that stand for layers, where upstream's stack is given those.

Such a stack asks ``isinstance(layer_config, MambaLayerConfig)`` where others compare letters. A
table beside ``Symbols`` says which class is which letter's, and that says which branch builds a
symbol only if no class stands for two letters and none derives from another: a configuration would
then pass a branch that is not its own.
"""

import ast
from collections.abc import Mapping

import attrs

from megatron_seams.upstream.ast_queries import bindings, classes, walk
from megatron_seams.upstream.source import SourceFile
from megatron_seams.upstream.symbols import CONFIG_TABLE

#: What the classes may derive from: the configurations that are there for every layer.
_ROOTS = ("MLATransformerConfig", "TransformerConfig")


@attrs.frozen(kw_only=True, eq=False, repr=False)
class LayerConfigs:
    """The table of classes.

    Attributes:
        constants: Class -> constant.
        modules: Class -> the module that it is imported from.
        table: The table itself.
    """

    constants: Mapping[str, str]
    modules: Mapping[str, str]
    table: ast.Dict

    def lists(self, function: ast.FunctionDef) -> bool:
        """Whether a function returns one configuration for each letter, of the letter's class."""
        match function.body:
            case [
                *before,
                ast.Assign(targets=[ast.Name(id=made)], value=ast.Call(args=[], keywords=[])),
                ast.For(target=ast.Name(id=letter), iter=ast.Name(id=text), body=body, orelse=[]),
                ast.Return(value=ast.Name(id=returned)),
            ]:
                bound = bindings(walk(function))
                plain = all(isinstance(node, ast.Expr) for node in before)
                once = bound[made] == bound[letter] == bound[text] == 1
                given = text == function.args.args[0].arg
                return plain and once and given and returned == made and _adds(body, made, letter)
        return False


def _adds(body: list[ast.stmt], made: str, letter: str) -> bool:
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
        and CONFIG_TABLE in bindings(walk(node))
    ]
    file.hold(len(tables) == 1 and bound[CONFIG_TABLE] == 1, f"{CONFIG_TABLE} is not one table")
    constants: dict[str, str] = {}
    for key, value in zip(tables[0].keys, tables[0].values, strict=True):
        match key, value:
            case ast.Attribute(value=ast.Name(id="Symbols"), attr=constant), ast.Name(id=name):
                file.hold(name not in constants, f"{name} stands for two symbols in {CONFIG_TABLE}")
                constants[name] = constant
            case _:
                file.hold(
                    False, f"line {value.lineno} of {CONFIG_TABLE} is not a symbol and a class"
                )
    modules = {
        alias.asname or alias.name: node.module or ""
        for node in file.tree.body
        if isinstance(node, ast.ImportFrom) and node.level == 0
        for alias in node.names
        if alias.asname is None
    }
    for name in constants:
        file.hold(name in modules and bound[name] == 1, f"{name} is not imported from one module")
    return LayerConfigs(
        constants=constants,
        modules={name: modules[name] for name in constants},
        table=tables[0],
    )


def hold_apart(file: SourceFile, name: str) -> None:
    """Hold a class to derive from nothing that another layer's configuration may be.

    Args:
        file: The module that defines it.
        name: The class.

    Raises:
        SurfaceUnknown: It may be another's too.
    """
    found = [cls for cls in classes(file.tree.body, name) if cls.name == name]
    bound = file.bound
    file.hold(len(found) == 1 and bound[name] == 1, f"{name} is not one class")
    bases = [base.id if isinstance(base, ast.Name) else "?" for base in found[0].bases]
    file.hold(
        bool(bases) and set(bases) <= set(_ROOTS) and not found[0].keywords,
        f"{name} derives from {', '.join(bases) or 'nothing'}: another layer's branch may take it",
    )
