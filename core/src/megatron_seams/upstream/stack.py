"""The loop of upstream's hybrid stack: which slot it builds for each symbol, with which keywords.

The one shape that is understood is a loop over the list of layers, in the constructor, with a chain
of branches that compare the layer with one symbol each and build one slot each. Everything that
could give a branch another meaning is checked: the loop's own variable is compared and is never
rebound; the submodules are those of the caller; each name means one thing in the whole file;
nothing leaves the loop early; and nothing is built outside it.
"""

import ast
from collections.abc import Iterator

import attrs

from megatron_seams.upstream.ast_queries import (
    bindings,
    classes,
    functions,
    imported,
    is_docstring,
    mentions,
    module_of,
    own_nodes,
)
from megatron_seams.upstream.layer_configs import LayerConfigs
from megatron_seams.upstream.slots import BUILD, SUBMODULES, built_by, keeps_slots
from megatron_seams.upstream.source import SourceFile

#: The module of the function that builds a slot.
_BUILDER = "megatron.core.transformer.spec_utils"
#: Upstream's names for the list of layers.
_LISTS = ("layer_type_list", "layer_config_list")
#: The functions that make the list of layers where the caller does not give it.
_LISTED_BY = ("allocate_layers", "validate_segment_layers")
#: Statements and expressions that may leave the loop, or do in it what is not read.
_LEAVES = (
    *(ast.Continue, ast.Break, ast.Return, ast.Yield, ast.YieldFrom, ast.Await),
    *(ast.Try, ast.While, ast.AsyncFor, ast.AsyncWith, ast.Match, ast.NamedExpr, ast.Delete),
    *(ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.Global, ast.Nonlocal),
)


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
            and not constructors[0].decorator_list
            and not stack.decorator_list,
            f"{stack.name} has not one plain constructor",
        )
        branches = self._branches(stack, constructors[0])
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
            and all(mentions(node, "dataclass") for node in submodules.decorator_list),
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

    # --- the constructor ----------------------------------------------------------------------

    def _branches(self, stack: ast.ClassDef, constructor: ast.FunctionDef) -> tuple[Branch, ...]:
        """The branches of the loop that builds layers, in the constructor."""
        loops = [
            node for node in constructor.body if isinstance(node, ast.For) and mentions(node, BUILD)
        ]
        self._file.require(len(loops) == 1, f"{len(loops)} loops that build layers")
        key, listed = self._loops_over(loops[0])
        chain, after = self._chain(loops[0].body)
        nodes = list(ast.walk(constructor))
        bound = bindings(nodes)
        self._file.require(bound[key] == 1, f"{key} is bound more than once")
        self._check_list_given(stack, nodes, listed)
        branches = tuple(self._read_chain(chain, key))
        once = bound["layer"] == len(branches) + self._wraps(after, key)
        self._file.require(once, "layer is bound outside the branches")
        self._check_submodules(stack, nodes, chain)
        kept = [n for n in nodes if _stores(n, "layers")]
        self._file.require(len(kept) == 1, "self.layers is set more than once")
        return branches

    def _loops_over(self, loop: ast.For) -> tuple[str, str]:
        """The names of the loop's variable and of the list that it loops over."""
        match loop:
            case ast.For(
                target=ast.Tuple(elts=[ast.Name(), ast.Name(id=key)]),
                iter=ast.Call(
                    func=ast.Name(id="enumerate"),
                    args=[
                        ast.Attribute(value=ast.Name(id="self"), attr=listed) | ast.Name(id=listed)
                    ],
                    keywords=[],
                ),
                orelse=[],
            ) if listed in _LISTS:
                return key, listed
        raise self._file.unknown(f"line {loop.lineno} does not loop over the list of layers")

    def _chain(self, body: list[ast.stmt]) -> tuple[ast.If, list[ast.stmt]]:
        """The chain of branches, and the statements after it in the loop."""
        heads = [node for node in body if mentions(node, BUILD)]
        self._file.require(len(heads) == 1, f"{len(heads)} statements of the loop build layers")
        after = body[body.index(heads[0]) + 1 :]
        for node in body:
            if node is heads[0]:
                continue
            parts = ast.walk(node)
            self._file.require(
                not any(isinstance(part, (ast.For, ast.Raise, *_LEAVES)) for part in parts),
                f"line {node.lineno} of the loop is not understood",
            )
        match heads[0]:
            case ast.With(body=inner):
                chain, rest = self._chain(inner)
                return chain, [*rest, *after]
            case ast.If() as chain:
                return chain, after
        raise self._file.unknown(f"line {heads[0].lineno} of the loop is not understood")

    def _wraps(self, after: list[ast.stmt], key: str) -> int:
        """How often every layer alike is wrapped after it is built."""
        wraps = 0
        for statement in after:
            for node in ast.walk(statement):
                match node:
                    case ast.Assign(targets=[ast.Name(id="layer")], value=value):
                        wraps += 1
                        self._file.require(
                            isinstance(value, ast.Call)
                            and mentions(value, "layer")
                            and not mentions(statement, key),
                            f"line {node.lineno} puts something else for the layer",
                        )
        return wraps

    def _check_list_given(self, stack: ast.ClassDef, nodes: list[ast.AST], listed: str) -> None:
        """Check that the list of layers is the caller's, or made by upstream's own function."""
        for node in nodes:
            match node:
                case ast.Assign(targets=[target], value=value) if _is_list(target, listed):
                    known = _is_list(value, listed) or self._is_listing(value)
                case ast.Assign(
                    targets=[ast.Tuple(elts=[ast.Name(), target])],
                    value=ast.Call(
                        func=ast.Attribute(value=ast.Name(id="self"), attr=method),
                        args=[given],
                        keywords=[],
                    ),
                ) if _is_list(target, listed):
                    known = _is_list(given, listed) and all(
                        _selects(found) for found in functions(stack.body, method)
                    )
                case ast.Subscript(value=value) | ast.Attribute(value=value):
                    known = not _is_list(value, listed)
                case ast.Expr(value=ast.Call(args=arguments)):
                    known = not any(_is_list(argument, listed) for argument in arguments)
                case _:
                    continue
            self._file.require(
                known, f"what line {node.lineno} does with the list of layers is not understood"
            )

    def _is_listing(self, value: ast.expr) -> bool:
        """Whether an expression calls a function that makes the list of layers."""
        known = imported(self._file.tree, self._allocation)
        match value:
            case ast.Call(func=ast.Name(id=name)):
                return name in _LISTED_BY and known.get(name) == name and self._bound[name] == 1
        return False

    def _check_submodules(self, stack: ast.ClassDef, nodes: list[ast.AST], chain: ast.If) -> None:
        """Check that the submodules are the caller's, or copies with every slot in its place."""
        known = {id(part) for part in ast.walk(chain)}
        given = sum(isinstance(node, ast.arg) and node.arg == SUBMODULES for node in nodes)
        self._file.require(given == 1, "the constructor is given no submodules")
        for node in nodes:
            match node:
                case ast.Assign(
                    targets=[ast.Name(id=target) as stored],
                    value=ast.Call(
                        func=ast.Attribute(value=ast.Name(id="self"), attr=method),
                        args=[ast.Name(id=argument) as passed],
                        keywords=[],
                    ),
                ) if target == argument == SUBMODULES and id(node) not in known:
                    found = functions(stack.body, method)
                    if len(found) == 1 and keeps_slots(found[0]):
                        known |= {id(stored), id(passed)}
        for node in nodes:
            if isinstance(node, ast.Name) and node.id == SUBMODULES:
                self._file.require(
                    id(node) in known,
                    f"what line {node.lineno} does with the submodules is not understood",
                )

    # --- the chain ----------------------------------------------------------------------------

    def _read_chain(self, node: ast.If, key: str) -> Iterator[Branch]:
        """The branches of a chain of comparisons with the variable ``key``."""
        while True:
            constant = self._compared(node.test, key)
            built = built_by(node.body)
            if constant is None or built is None:
                raise self._file.unknown(
                    f"the branch at line {node.lineno} of the stack is not understood"
                )
            yield Branch(constant=constant, slot=built[0], keywords=built[1])
            match node.orelse:
                case [ast.If() as node]:
                    continue
                case [ast.Raise()] | [ast.Assert(test=ast.Constant(value=False))]:
                    return
            raise self._file.unknown(
                f"the chain that ends at line {node.lineno} of the stack has a default"
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


def _is_list(node: ast.expr, listed: str) -> bool:
    """Whether an expression is ``listed`` or ``self.listed``."""
    match node:
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name == listed
    return False


def _stores(node: ast.AST, attribute: str) -> bool:
    """Whether a node sets or deletes an attribute of ``self``."""
    match node:
        case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store() | ast.Del()):
            return name == attribute
    return False


def _selects(method: ast.FunctionDef) -> bool:
    """Whether a method returns an offset and a slice of the list that it is given."""
    given = method.args.args[-1].arg
    match method.body[-1]:
        case ast.Return(value=ast.Tuple(elts=[_, ast.Name(id=returned)])):
            pass
        case _:
            return False
    nodes = list(ast.walk(method))
    bound = bindings(nodes)
    slices = [
        node
        for node in nodes
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == returned
        and isinstance(node.value, ast.Subscript)
        and isinstance(node.value.slice, ast.Slice)
        and isinstance(node.value.value, ast.Name)
        and node.value.value.id == given
    ]
    returns = sum(isinstance(node, ast.Return) for node in nodes)
    return len(slices) == 1 and bound[returned] == bound[given] == returns == 1
