"""The native surface: what one given Megatron-Core really builds, read from its source.

There is no table of Megatron versions here. The reader knows one *shape* of source, the one that
every published release of the hybrid stack has had: a class of symbols, a dataclass of submodules,
and a chain of branches that builds one field for each symbol. A source of another shape is an error
and nothing in it is native, since a reader that guesses is worse than one that refuses.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator

import attrs
from packaging.version import Version

from megatron_seams.errors import SeamsError, SymbolUnmapped
from megatron_seams.families import BY_CONSTANT
from megatron_seams.sources import MegatronSource, unknown_shape

#: Where the hybrid stack lives, the newest home first. Old homes stay behind as aliases.
_HOMES = (
    ("core/models/hybrid/hybrid_layer_allocation.py", "core/models/hybrid/hybrid_block.py"),
    ("core/ssm/mamba_hybrid_layer_allocation.py", "core/ssm/mamba_block.py"),
)
_VALID = ("VALID_LAYERS", "VALID")


@attrs.frozen(kw_only=True)
class NativeSymbol:
    """One layer symbol of upstream's.

    Attributes:
        constant: Its name in upstream's ``Symbols`` class, ``MAMBA``.
        symbol: The letter, ``M``.
        slot: The field of upstream's submodules that builds it, ``mamba_layer``.
        keywords: What upstream's loop passes to the slot, in its order.
    """

    constant: str
    symbol: str
    slot: str
    keywords: tuple[str, ...]

    @property
    def family(self) -> str | None:
        """The family that core knows under this constant; None if it is unmapped."""
        return BY_CONSTANT.get(self.constant)


@attrs.frozen(kw_only=True)
class Exclusion:
    """A combination that upstream refuses, as a boolean tree over its constants.

    Attributes:
        operator: ``has`` (a leaf), ``and``, ``or`` or ``not``.
        constant: The constant of a leaf.
        parts: The operands of a branch.
        message: What upstream says.
    """

    operator: str
    constant: str = ""
    parts: tuple["Exclusion", ...] = ()
    message: str = ""

    def forbids(self, constants: frozenset[str]) -> bool:
        """Whether a pattern that contains exactly these constants is refused."""
        match self.operator:
            case "has":
                return self.constant in constants
            case "not":
                return not self.parts[0].forbids(constants)
            case "and":
                return all(part.forbids(constants) for part in self.parts)
            case _:
                return any(part.forbids(constants) for part in self.parts)


@attrs.frozen(kw_only=True)
class NativeSurface:
    """What one Megatron builds.

    Attributes:
        version: Its version; None where there is no Megatron that can be read.
        origin: Where it was read from.
        symbols: Its layer symbols, in the order of upstream's class.
        slots: All fields of its submodules dataclass.
        separators: Its structural characters, ``|`` and ``/``, as far as it has them.
        exclusions: The combinations that it refuses.
        digest: SHA-256 over the text that was read.
    """

    version: Version | None = None
    origin: str = ""
    symbols: tuple[NativeSymbol, ...] = ()
    slots: tuple[str, ...] = ()
    separators: tuple[str, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
    digest: str = ""

    def of_family(self, family: str) -> NativeSymbol | None:
        """The symbol that builds a family that core knows."""
        return next((symbol for symbol in self.symbols if symbol.family == family), None)

    def of_constant(self, constant: str) -> NativeSymbol | None:
        """The symbol of an upstream constant, whether or not core has a family for it."""
        return next((symbol for symbol in self.symbols if symbol.constant == constant), None)

    def of_slot(self, slot: str) -> NativeSymbol | None:
        """The symbol whose layers a slot builds."""
        return next((symbol for symbol in self.symbols if symbol.slot == slot), None)

    def forbidden(self, constants: Iterable[str]) -> tuple[str, ...]:
        """What upstream says against a pattern with exactly these constants."""
        present = frozenset(constants)
        return tuple(
            dict.fromkeys(rule.message for rule in self.exclusions if rule.forbids(present))
        )

    def unmapped(self) -> tuple[SeamsError, ...]:
        """A finding for each symbol that no family stands for."""
        return tuple(
            SymbolUnmapped(
                asked=f"the family of upstream's {symbol.constant} ({symbol.symbol!r})",
                found="core has none; the symbol is native to this Megatron and unmapped here",
                next="spell its layers by a family that a manifest introduces with symbol-name = "
                f'"{symbol.constant}", or wait for a megatron-seams that knows it',
                subject=symbol.constant,
                file=self.origin,
            )
            for symbol in self.symbols
            if symbol.family is None
        )


def read_surface(source: MegatronSource) -> NativeSurface:
    """Read the native surface of a Megatron.

    Raises:
        SurfaceUnknown: The source is of a shape that this reader does not know.
    """
    reader = _Reader(source)
    allocation_path, block_path = reader.home()
    allocation = reader.tree(allocation_path)
    block = reader.tree(block_path)
    constants, layers = reader.constants(allocation)
    slots = reader.slots(block)
    branches = {constant: (slot, keywords) for constant, slot, keywords in reader.branches(block)}
    reader.hold(
        set(branches) == set(layers),
        f"Symbols names {sorted(layers)} as layers and the stack builds {sorted(branches)}",
    )
    for slot, _ in branches.values():
        reader.hold(slot in slots, f"the stack builds submodules.{slot}, which is not a field")
    return NativeSurface(
        version=source.version(),
        origin=source.origin,
        symbols=tuple(
            NativeSymbol(
                constant=name,
                symbol=constants[name],
                slot=branches[name][0],
                keywords=branches[name][1],
            )
            for name in layers
        ),
        slots=slots,
        separators=tuple(value for name, value in constants.items() if name not in layers),
        exclusions=reader.exclusions(allocation),
        digest=reader.digest(),
    )


class _Reader:
    """One reading: it remembers what it read, for the digest and for the messages."""

    def __init__(self, source: MegatronSource) -> None:
        self._source = source
        self._read: list[str] = []

    def hold(self, known: bool, otherwise: str) -> None:
        if not known:
            raise unknown_shape(self._source.origin, f"{otherwise} ({', '.join(self._read)})")

    def home(self) -> tuple[str, str]:
        for allocation, block in _HOMES:
            if self._source.read(allocation) is not None:
                return allocation, block
        raise unknown_shape(self._source.origin, "it has no hybrid stack where one is known to be")

    def tree(self, path: str) -> ast.Module:
        tree = self._source.parse(path)
        self._read.append(path)
        if tree is None:
            raise unknown_shape(self._source.origin, f"megatron/{path} is not there")
        return tree

    def digest(self) -> str:
        digest = hashlib.sha256()
        for path in self._read:
            digest.update((self._source.read(path) or b"") + b"\0")
        return digest.hexdigest()

    def constants(self, tree: ast.Module) -> tuple[dict[str, str], tuple[str, ...]]:
        """The string constants of ``Symbols``, and which of them are layers."""
        found = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Symbols"]
        self.hold(len(found) == 1, f"{len(found)} classes named Symbols")
        constants: dict[str, str] = {}
        layers: tuple[str, ...] | None = None
        for node in found[0].body:
            if not isinstance(node, ast.Assign):
                # A docstring and methods say nothing of the vocabulary; an annotated or computed
                # member might.
                self.hold(
                    isinstance(node, ast.FunctionDef)
                    or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)),
                    f"line {node.lineno} of class Symbols is not understood",
                )
                continue
            (target,) = node.targets
            self.hold(isinstance(target, ast.Name), f"line {node.lineno} of class Symbols")
            name = target.id if isinstance(target, ast.Name) else ""
            value = node.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                constants[name] = value.value
            elif name in _VALID and isinstance(value, ast.Set):
                layers = tuple(part.id for part in value.elts if isinstance(part, ast.Name))
                self.hold(len(layers) == len(value.elts), f"Symbols.{name} is not a set of names")
            else:
                self.hold(False, f"Symbols.{name} is neither a letter nor the set of layers")
        self.hold(bool(layers), "Symbols has no set of layers")
        layers = tuple(name for name in constants if name in (layers or ()))
        letters = [constants[name] for name in layers]
        self.hold(
            all(len(letter) == 1 for letter in letters) and len(set(letters)) == len(letters),
            f"the layer symbols {letters} are not distinct single characters",
        )
        return constants, layers

    def slots(self, tree: ast.Module) -> tuple[str, ...]:
        """The fields of the submodules dataclass."""
        found = [
            node
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name.endswith("StackSubmodules")
        ]
        self.hold(len(found) == 1, f"{len(found)} classes named *StackSubmodules")
        return tuple(
            node.target.id
            for node in found[0].body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        )

    def branches(self, tree: ast.Module) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Constant, slot and keywords of each branch that builds a layer."""
        conditions = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
        chains = [node for node in conditions if _constant_of(node) is not None]
        inner = {id(part) for node in chains for part in node.orelse if isinstance(part, ast.If)}
        builders = [
            node for node in chains if id(node) not in inner and _built(node.body[0]) is not None
        ]
        self.hold(len(builders) == 1, f"{len(builders)} chains of branches that build layers")
        node = builders[0]
        while True:
            constant = _constant_of(node)
            built = _built(node.body[0]) if len(node.body) == 1 else None
            self.hold(
                constant is not None and built is not None,
                f"the branch at line {node.lineno} of the stack is not understood",
            )
            if constant is not None and built is not None:
                yield constant, *built
            rest = node.orelse
            if len(rest) == 1 and isinstance(rest[0], ast.If):
                node = rest[0]
                continue
            self.hold(
                all(isinstance(part, ast.Raise | ast.Assert) for part in rest) and bool(rest),
                f"the chain that ends at line {node.lineno} of the stack builds something else",
            )
            return

    def exclusions(self, tree: ast.Module) -> tuple[Exclusion, ...]:
        """The combinations that the allocation module's functions raise on."""
        functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
        plain = {id(node) for function in functions for node in function.body}
        rules: dict[Exclusion, None] = {}
        for node in ast.walk(tree):
            if not isinstance(node, ast.If) or not _mentions_presence(node.test):
                continue
            if not any(isinstance(part, ast.Raise) for part in ast.walk(node)):
                continue
            # One that hides in a loop or a branch holds under conditions that are not read.
            stands_alone = id(node) in plain and _raises(node)
            rule = _rule(node.test, _said(node)) if stands_alone else None
            self.hold(rule is not None, f"the condition at line {node.lineno} is not understood")
            if rule is not None:
                rules[rule] = None
        return tuple(rules)


def _constant_of(node: ast.If) -> str | None:
    """``MAMBA`` of ``if layer_type == LayerSymbols.MAMBA:``, else None."""
    match node:
        case ast.If(
            test=ast.Compare(
                left=ast.Name(id="layer_type"),
                ops=[ast.Eq()],
                comparators=[ast.Attribute(value=ast.Name(), attr=constant)],
            )
        ):
            return constant
    return None


def _built(node: ast.stmt) -> tuple[str, tuple[str, ...]] | None:
    """Slot and keywords of ``layer = build_module(submodules.SLOT, keyword=...)``, else None."""
    match node:
        case ast.Assign(
            targets=[ast.Name(id="layer")],
            value=ast.Call(
                func=ast.Name(id="build_module"),
                args=[ast.Attribute(value=ast.Name(id="submodules"), attr=slot)],
                keywords=keywords,
            ),
        ) if all(keyword.arg for keyword in keywords):
            return slot, tuple(keyword.arg for keyword in keywords if keyword.arg)
    return None


def _raises(node: ast.If) -> bool:
    return len(node.body) == 1 and isinstance(node.body[0], ast.Raise) and not node.orelse


def _mentions_presence(test: ast.expr) -> bool:
    """Whether a condition asks if a symbol is *in* something."""
    return any(
        isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Attribute)
        and isinstance(node.left.value, ast.Name)
        and node.left.value.id.endswith("Symbols")
        for node in ast.walk(test)
    )


def _rule(test: ast.expr, message: str) -> Exclusion | None:
    match test:
        case ast.Compare(
            left=ast.Attribute(value=ast.Name(), attr=constant),
            ops=[ast.In() | ast.NotIn() as operator],
            comparators=[ast.Name()],
        ):
            leaf = Exclusion(operator="has", constant=constant, message=message)
            if isinstance(operator, ast.In):
                return leaf
            return Exclusion(operator="not", parts=(leaf,), message=message)
        case ast.BoolOp(op=operator, values=values):
            parts = [_rule(value, message) for value in values]
            known = tuple(part for part in parts if part is not None)
            if len(known) != len(parts):
                return None
            name = "and" if isinstance(operator, ast.And) else "or"
            return Exclusion(operator=name, parts=known, message=message)
    return None


def _said(node: ast.If) -> str:
    """The text that upstream raises with, where it is a literal."""
    match node.body[0]:
        case ast.Raise(exc=ast.Call(args=[ast.Constant(value=str() as text), *_])):
            return text
    return ast.unparse(node.test)
