"""Upstream's layer symbols, read from the module that turns a pattern into a list of layers.

The source is of a known shape only if

- ``Symbols`` is a plain class of letters that nothing changes afterwards;
- every structural character is one that this package knows. A bracket that makes one layer of
  several letters, say, changes how layers are numbered, and seams go by those numbers;
- every mention of a layer elsewhere in the module is accounted for. A rule in a helper, or a letter
  that is replaced by another, has to mention one.
"""

import ast
from collections.abc import Mapping

import attrs

from megatron_seams.upstream.allocation import check_allocation
from megatron_seams.upstream.ast_queries import (
    bindings,
    classes,
    functions,
    is_docstring,
    own_nodes,
)
from megatron_seams.upstream.exclusions import Exclusion, read_exclusions
from megatron_seams.upstream.layer_configs import CONFIG_TABLE, LayerConfigs, read_layer_configs
from megatron_seams.upstream.source import SourceFile

#: Upstream's names for the set of all layers; a release has one of them.
_LAYERS = ("VALID_LAYERS", "VALID")
#: Upstream's constants for the structural characters that this package knows.
_SEPARATORS = ("PIPE", "MTP_SEPARATOR")
#: Functions that lay out layers by ratios, as upstream did before patterns, or count and number
#: them. They mention layers and have no part in what a pattern means.
_ASIDE = (
    *("_allocate_auto", "allocate_layers", "pattern_from_ratios"),
    *("get_hybrid_layer_counts", "get_layer_maps_from_layer_type_list"),
)
#: The function that turns a pattern, or the part of one stage, into a list: newest name first.
_LISTS = ("validate_segment_layers", "_allocate_override")


@attrs.frozen(kw_only=True)
class Symbols:
    """The symbols of one Megatron.

    Attributes:
        layers: Constant -> letter of each layer, in the order of upstream's class.
        separators: Its structural characters, in the same order.
        exclusions: The combinations of layers that it refuses.
        configs: The configuration class of each layer, where the stack is given configurations
            instead of letters; else None.
    """

    layers: Mapping[str, str]
    separators: tuple[str, ...]
    exclusions: tuple[Exclusion, ...]
    configs: LayerConfigs | None


def read_symbols(file: SourceFile) -> Symbols:
    """Read the symbols from upstream's allocation module.

    Raises:
        SurfaceUnknown: It is of a shape that this reader does not know.
    """
    found = classes(file.tree.body, "Symbols")
    file.require(
        len(found) == 1 and found[0].name == "Symbols", f"{len(found)} classes named Symbols"
    )
    symbols = found[0]
    bound = file.bound
    file.require(bound["Symbols"] == 1 and not bound["*"], "Symbols is bound more than once")
    file.require(
        not symbols.bases and not symbols.keywords and not symbols.decorator_list,
        "class Symbols is not a plain class",
    )
    letters, sets = _members(file, symbols)
    named = [name for name in _LAYERS if name in sets]
    file.require(len(named) == 1, "Symbols has no set of layers, or two")
    layers = {name: letter for name, letter in letters.items() if name in sets[named[0]]}
    rest = {name: letter for name, letter in letters.items() if name not in layers}
    file.require(
        set(sets[named[0]]) == set(layers), f"Symbols.{named[0]} names what is no letter of Symbols"
    )
    unknown = [f"{name} ({letter!r})" for name, letter in rest.items() if name not in _SEPARATORS]
    file.require(
        not unknown,
        f"it knows no structural character called {', '.join(unknown)}: what a pattern counts as "
        "layers may depend on it",
    )
    every = [*layers.values(), *rest.values()]
    file.require(
        all(len(letter) == 1 for letter in every) and len(set(every)) == len(every),
        f"the symbols {every} are not distinct single characters",
    )
    configs = read_layer_configs(file) if bound[CONFIG_TABLE] else None
    rules = list(read_exclusions(file.tree, sets))
    for rule, statement in rules:
        file.require(
            rule.constants <= layers.keys(), f"line {statement.lineno}: a rule over no layers"
        )
    accounted: list[ast.expr] = [statement.test for _, statement in rules]
    if configs is not None:
        accounted.append(configs.table)
    _check_mentions(file, symbols, accounted, layers, {*sets} - {named[0]})
    lists = functions(file.tree.body, *_LISTS)
    file.require(len(lists) == 1, f"{len(lists)} functions that list the layers of a pattern")
    if configs is not None:
        file.require(configs.lists(lists[0]), f"{lists[0].name} does not list what it is given")
    check_allocation(file, configs, [statement for _, statement in rules])
    return Symbols(
        layers=layers,
        separators=tuple(rest.values()),
        exclusions=tuple(dict.fromkeys(rule for rule, _ in rules)),
        configs=configs,
    )


def _members(
    file: SourceFile, symbols: ast.ClassDef
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """The letters of the class, and its sets of constants."""
    letters: dict[str, str] = {}
    sets: dict[str, tuple[str, ...]] = {}
    for node in symbols.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str() as letter)):
                letters[name] = letter
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Set(elts=elements)):
                sets[name] = tuple(part.id for part in elements if isinstance(part, ast.Name))
                file.require(len(sets[name]) == len(elements), f"Symbols.{name} is no set of names")
            case ast.FunctionDef():
                pass  # a method defines no symbol
            case _:
                # An annotated or computed member might.
                file.require(is_docstring(node), f"line {node.lineno} of class Symbols")
    twice = [name for name, count in bindings(own_nodes(symbols.body)).items() if count > 1]
    file.require(not twice, f"class Symbols binds {', '.join(twice)} more than once")
    stored = [
        part
        for part in ast.walk(symbols)
        if isinstance(part, ast.Attribute) and not isinstance(part.ctx, ast.Load)
    ]
    file.require(not stored, "a method of class Symbols changes it")
    return letters, sets


def _check_mentions(
    file: SourceFile,
    symbols: ast.ClassDef,
    accounted: list[ast.expr],
    layers: Mapping[str, str],
    groups: set[str],
) -> None:
    """Check that every mention of a layer outside class ``Symbols`` is understood.

    Args:
        file: The module.
        symbols: The class.
        accounted: Expressions whose meaning was read: conditions of rules, the table of
            configuration classes.
        layers: Constant -> letter.
        groups: The names of the class's sets, but for that of all layers.

    Raises:
        SurfaceUnknown: One is not.
    """
    passed = [
        *accounted,
        *functions(file.tree.body, *_ASIDE),
        *(node for node in file.tree.body if _is_script(node)),
        *(node for node in file.nodes if isinstance(node, ast.JoinedStr)),  # messages
    ]
    skip = {id(part) for node in passed for part in ast.walk(node)}
    skip |= {id(part) for part in ast.walk(symbols)}
    stated = {id(test) for test in accounted}
    skip -= {
        id(part)
        for node in file.nodes
        if isinstance(node, ast.If) and id(node.test) not in stated and _raises(node)
        for part in ast.walk(node.test)
    }
    inner: set[int] = set()
    for node in file.nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="Symbols") as name, attr=attribute, ctx=context):
                inner.add(id(name))
                file.require(
                    isinstance(context, ast.Load)
                    and (id(node) in skip or attribute not in {*layers, *groups}),
                    f"what line {node.lineno} does with Symbols.{attribute} is not understood",
                )
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="Symbols"))):
                raise file.unknown(f"line {node.lineno} may change Symbols")
            case ast.Name(id="Symbols"):
                # Breadth first: the attribute that it may be part of was seen before it.
                file.require(id(node) in inner, f"line {node.lineno} may change Symbols")
            case ast.Constant(value=str() as text) if text and id(node) not in skip:
                file.require(
                    not set(text) <= set(layers.values()),
                    f"line {node.lineno} spells layers by their letters",
                )
            case ast.ImportFrom(module=str(module)) if module.startswith("megatron"):
                known = {alias.name for alias in node.names} <= {"TransformerConfig"}
                file.require(
                    module == "megatron.core.utils" or known or _is_of_configs(node),
                    f"what line {node.lineno} imports from {module} may check patterns too",
                )


def _raises(node: ast.If) -> bool:
    """Whether an exception is raised anywhere in a statement."""
    return any(isinstance(part, ast.Raise) for part in ast.walk(node))


def _is_of_configs(node: ast.ImportFrom) -> bool:
    """Whether all names that a statement imports are those of configuration classes."""
    return all(alias.name.endswith("LayerConfig") for alias in node.names)


def _is_script(node: ast.stmt) -> bool:
    """Whether a statement is ``if __name__ == "__main__":``."""
    match node:
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()])):
            return not node.orelse
    return False
