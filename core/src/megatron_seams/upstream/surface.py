"""The native surface: what one given Megatron-Core really builds, read from its source.

There is no table of Megatron versions here. The reader knows one *shape* of source, the one that
every published release of the hybrid stack has had: a class of symbols, a dataclass of submodules,
and a chain of branches that builds one field for each symbol. A source of another shape is an error
and nothing in it is native: a wrong guess would build another model than the plan says.
"""

import hashlib
from collections.abc import Iterable

import attrs
from packaging.version import Version

from megatron_seams.errors import SeamsError, SymbolUnmapped
from megatron_seams.families import BY_CONSTANT
from megatron_seams.upstream.ast_queries import path_of
from megatron_seams.upstream.exclusions import Exclusion
from megatron_seams.upstream.layer_configs import check_bases
from megatron_seams.upstream.source import MegatronSource, SourceFile, unknown_shape
from megatron_seams.upstream.stack import read_stack
from megatron_seams.upstream.symbols import read_symbols

#: The files of the symbols and of the stack, the newest first: old ones stay behind as aliases.
_HOMES = (
    ("core/models/hybrid/hybrid_layer_allocation.py", "core/models/hybrid/hybrid_block.py"),
    ("core/ssm/mamba_hybrid_layer_allocation.py", "core/ssm/mamba_block.py"),
)


@attrs.frozen(kw_only=True)
class Native:
    """Megatron builds the layer itself.

    Attributes:
        symbol: Upstream's letter, ``M``.
        slot: The field of upstream's submodules that builds it, ``mamba_layer``.
    """

    symbol: str
    slot: str

    @property
    def name(self) -> str:
        """The provider without its slot, ``native``."""
        return "native"

    @property
    def label(self) -> str:
        """How tables name the provider, ``native M``."""
        return f"native {self.symbol}"

    @property
    def owner(self) -> str:
        """Nobody here: upstream answers for what it builds."""
        return "-"

    @property
    def state(self) -> str:
        """``native``."""
        return "native"


@attrs.frozen(kw_only=True)
class NativeSymbol:
    """One layer symbol of upstream's.

    Attributes:
        constant: Its name in upstream's ``Symbols`` class, ``MAMBA``.
        symbol: The letter, ``M``.
        slot: The field of upstream's submodules that builds it, ``mamba_layer``.
        keywords: The keywords that upstream's loop passes to the slot, in its order.
    """

    constant: str
    symbol: str
    slot: str
    keywords: tuple[str, ...]

    @property
    def family(self) -> str | None:
        """The family that core knows under this constant; None if it is unmapped."""
        return BY_CONSTANT.get(self.constant)

    @property
    def provider(self) -> Native:
        """The provider of the layers that it builds."""
        return Native(symbol=self.symbol, slot=self.slot)


@attrs.frozen(kw_only=True)
class NativeSurface:
    """The layers that one Megatron builds by itself.

    Attributes:
        version: Its version; None where there is no Megatron that can be read.
        origin: Where it was read from.
        symbols: Its layer symbols, in the order of upstream's class.
        slots: All fields of its submodules dataclass.
        separators: Its structural characters, ``|`` and ``/``, as far as it has them.
        exclusions: The combinations of layers that it refuses.
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

    def forbidden(self, decoder: Iterable[str], *, mtp: Iterable[str] = ()) -> tuple[str, ...]:
        """Upstream's messages against a pattern with exactly these constants; none if legal.

        Args:
            decoder: The constants of the decoder's layers.
            mtp: Those of an MTP part; none without one.
        """
        parts = [frozenset(decoder), *filter(None, [frozenset(mtp)])]
        whole = [frozenset[str]().union(*parts)]
        messages = [
            rule.message
            for rule in self.exclusions
            if any(map(rule.forbids, whole if rule.whole else parts))
        ]
        return tuple(dict.fromkeys(messages))

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
    home, block = (_file(source, path) for path in _home(source))
    symbols = read_symbols(home)
    stack = read_stack(block, home.path, symbols.configs)
    files = [home, block]
    if symbols.configs is not None:
        for name, module in sorted(symbols.configs.modules.items()):
            defining = _file(source, path_of(module))
            check_bases(defining, name)
            files.append(defining)
    branches = {branch.constant: branch for branch in stack.branches}
    block.require(
        set(branches) == set(symbols.layers),
        f"Symbols names {sorted(symbols.layers)} as layers and the stack builds {sorted(branches)}",
    )
    for branch in stack.branches:
        block.require(
            branch.slot in stack.slots,
            f"the stack builds submodules.{branch.slot}, which is not a field",
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.data + b"\0")
    return NativeSurface(
        version=source.version(),
        origin=source.origin,
        symbols=tuple(
            NativeSymbol(
                constant=name,
                symbol=letter,
                slot=branches[name].slot,
                keywords=branches[name].keywords,
            )
            for name, letter in symbols.layers.items()
        ),
        slots=stack.slots,
        separators=symbols.separators,
        exclusions=symbols.exclusions,
        digest=digest.hexdigest(),
    )


def _home(source: MegatronSource) -> tuple[str, str]:
    """The files of the symbols and of the stack."""
    for allocation, block in _HOMES:
        if source.read(allocation) is not None:
            return allocation, block
    raise unknown_shape(source.origin, "it has no hybrid stack where one is known to be")


def _file(source: MegatronSource, path: str) -> SourceFile:
    file = source.file(path)
    if file is None:
        raise unknown_shape(source.origin, f"megatron/{path} is not there")
    return file
