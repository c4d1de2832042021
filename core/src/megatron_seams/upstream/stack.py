"""The loop of upstream's hybrid stack: which slot it builds for each symbol, with which keywords.

The one shape that is understood is a loop over the list of layers, in the constructor, with a chain
of branches that compare the layer with one symbol each and build one slot each, with known values.
Each name means one thing in the whole file, and nothing is built outside the chain.
"""

import ast
from collections.abc import Iterator, Mapping

import attrs

from megatron_seams.upstream.ast_queries import (
    bindings,
    classes,
    functions,
    imported,
    is_docstring,
    module_of,
    own_nodes,
)
from megatron_seams.upstream.constructor import Loop, read_constructor
from megatron_seams.upstream.layer_configs import LayerConfigs
from megatron_seams.upstream.names import check_class, check_names, check_top_level
from megatron_seams.upstream.slots import BUILD, built_by
from megatron_seams.upstream.source import SourceFile

#: The module of the function that builds a slot.
_BUILDER = "megatron.core.transformer.spec_utils"
#: The slot whose layers add no offset to the number that they are given.
_MAMBA = "mamba_layer"
#: Arguments of the stack that a layer is never given as they are.
_NOT_PASSED = frozenset({"self", "config", "submodules", "name"})
#: The name that a layer is given from 0.18 on.
_NAMED = "name + f'.layers.{{{index}}}' if name is not None else None"


@attrs.frozen(kw_only=True)
class Branch:
    """One branch of the loop.

    Attributes:
        constant: The constant of the symbol that it is for.
        slot: The field of the submodules that it builds.
        keywords: The keywords that it builds it with, in upstream's order.
    """

    constant: str
    slot: str
    keywords: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Stack:
    """The stack of one Megatron.

    Attributes:
        slots: The fields of its submodules, in order.
        branches: The branches of its loop, in order.
    """

    slots: tuple[str, ...]
    branches: tuple[Branch, ...]


def read_stack(file: SourceFile, allocation: str, configs: LayerConfigs | None) -> Stack:
    """Read the stack from the module that defines it.

    Args:
        file: The module.
        allocation: The file of ``Symbols``, with which the loop must compare.
        configs: The configuration classes that it asks for instead, where it does.

    Raises:
        SurfaceUnknown: It is of a shape that this reader does not know.
    """
    return _Reader(file, allocation, configs).stack()


class _Reader:
    """One reading of the module that defines the stack."""

    def __init__(self, file: SourceFile, allocation: str, configs: LayerConfigs | None) -> None:
        self._file = file
        self._bound = file.bound
        self._allocation = module_of(allocation)
        self._configs = configs
        self._letters = imported(file.tree, self._allocation).get("Symbols")

    def stack(self) -> Stack:
        """The stack; raises SurfaceUnknown as :func:`read_stack` does."""
        file, bound = self._file, self._bound
        file.require(not bound["*"], "it imports names that cannot be told")
        submodules = self._one_class("StackSubmodules")
        stack = self._one_class(submodules.name.removesuffix("Submodules"))
        self._check_import(BUILD, _BUILDER)
        if self._configs is None:
            letters = self._letters or "Symbols"
            file.require(
                self._letters is not None and bound[letters] == 1,
                f"the symbols are not those of {self._allocation}",
            )
        else:
            for name, module in self._configs.modules.items():
                self._check_import(name, module)
        self._check_names_unchanged({stack.name, submodules.name, self._letters})
        slots = self._slots(submodules)
        constructors = functions(stack.body, "__init__")
        file.require(
            len(constructors) == 1
            and bindings(own_nodes(stack.body))["__init__"] == 1
            and not constructors[0].decorator_list,
            f"{stack.name} has not one plain constructor",
        )
        for node in (stack, submodules):
            check_class(file, node)
        check_names(file, constructors[0], self._letters)
        check_top_level(file)
        loop = read_constructor(file, stack, constructors[0])
        branches = tuple(self._read_chain(loop))
        built = [b.constant for b in branches]
        file.require(len(set(built)) == len(built), f"two branches of the loop for one of {built}")
        used = sum(isinstance(node, ast.Name) and node.id == BUILD for node in file.nodes)
        file.require(used == len(branches), "modules are built outside the branches of the loop")
        return Stack(slots=slots, branches=branches)

    def _one_class(self, suffix: str) -> ast.ClassDef:
        """The only class whose name ends in ``suffix``."""
        found = classes(self._file.tree.body, suffix)
        self._file.require(
            len(found) == 1 and self._bound[found[0].name] == 1, f"not one class named *{suffix}"
        )
        return found[0]

    def _check_import(self, name: str, module: str) -> None:
        """Check that a name is imported from a module and never bound again."""
        here = imported(self._file.tree, module).get(name)
        self._file.require(
            here == name and self._bound[name] == 1, f"{name} is not that of {module}"
        )

    def _check_names_unchanged(self, names: set[str | None]) -> None:
        """Check that no attribute of these classes is set, nor the symbols passed on."""
        inner: set[int] = set()
        for node in self._file.nodes:
            match node:
                case ast.Attribute(value=ast.Name(id=name) as base, ctx=context):
                    inner.add(id(base))
                    self._file.require(
                        name not in names or isinstance(context, ast.Load),
                        f"line {node.lineno} changes {name}",
                    )
                case ast.Name(id=name) if name == self._letters:
                    # Breadth first: the attribute that it may be part of was seen before it.
                    self._file.require(id(node) in inner, f"line {node.lineno} may change {name}")

    def _slots(self, submodules: ast.ClassDef) -> tuple[str, ...]:
        """The fields of the submodules dataclass."""
        file = self._file
        file.require(
            not submodules.bases
            and not submodules.keywords
            and [ast.unparse(node) for node in submodules.decorator_list] == ["dataclass"],
            f"{submodules.name} is not a plain dataclass",
        )
        fields: list[str] = []
        for node in submodules.body:
            match node:
                case ast.AnnAssign(target=ast.Name(id=name)):
                    fields.append(name)
                case _:
                    file.require(
                        is_docstring(node), f"line {node.lineno} of {submodules.name} is no field"
                    )
        return tuple(fields)

    # --- the chain ----------------------------------------------------------------------------

    def _read_chain(self, loop: Loop) -> Iterator[Branch]:
        """The branches of the chain of comparisons with the loop's variable."""
        node = loop.chain
        while True:
            constant = self._compared(node.test, loop.key)
            built = built_by(node.body)
            if constant is None or built is None:
                raise self._file.unknown(
                    f"the branch at line {node.lineno} of the stack is not understood"
                )
            slot, keywords = built
            self._check_keywords(loop, slot, keywords)
            yield Branch(constant=constant, slot=slot, keywords=tuple(keywords))
            match node.orelse:
                case [ast.If() as node]:
                    continue
                case [ast.Raise()] | [ast.Assert(test=ast.Constant(value=False))]:
                    return
            raise self._file.unknown(
                f"the chain that ends at line {node.lineno} of the stack has a default"
            )

    def _check_keywords(self, loop: Loop, slot: str, keywords: Mapping[str, ast.expr]) -> None:
        """Check that a slot is given the values that dispatch relies on, numbers above all."""
        given = {name: ast.unparse(value) for name, value in keywords.items()}
        missing = {"config", "layer_number"} - given.keys()
        self._file.require(not missing, f"{slot} is built without {', '.join(sorted(missing))}")
        values = {
            "config": {"self.config"} if self._configs is None else {"self.config", loop.key},
            "layer_number": loop.numbers,
            "pp_layer_offset": {"pp_layer_offset"},
            "add_layer_offset": {"False"},
            "name": {ast.unparse(ast.parse(_NAMED.format(index=loop.index)))},
        }
        if slot != _MAMBA and given["layer_number"] == f"{loop.index} + 1":
            # Up to 0.16 a layer adds the offset of its stage by itself.
            values["layer_number"] = {given["layer_number"]}
            local = True
        else:
            local = slot == _MAMBA
        self._file.require(
            ("add_layer_offset" in given) != local,
            f"line {keywords['config'].lineno}: the number of {slot} may have an offset added",
        )
        for name, text in given.items():
            # An argument under its own name, or under a new one, which is then reported.
            own = {name} if name in loop.parameters else loop.parameters - _NOT_PASSED
            known = text in values.get(name, own)
            self._file.require(
                known, f"line {keywords[name].lineno}: {slot} is built with {name}={text}"
            )

    def _compared(self, test: ast.expr, key: str) -> str | None:
        """The constant that the variable ``key`` is compared with; None if not understood."""
        match test:
            case ast.Compare(
                left=ast.Name(id=left),
                ops=[ast.Eq()],
                comparators=[ast.Attribute(value=ast.Name(id=letters), attr=constant)],
            ) if self._configs is None and left == key and letters == self._letters:
                return constant
            case ast.Call(
                func=ast.Name(id="isinstance"),
                args=[ast.Name(id=left), ast.Name(id=name)],
                keywords=[],
            ) if self._configs is not None and left == key:
                return self._configs.constants.get(name)
        return None
