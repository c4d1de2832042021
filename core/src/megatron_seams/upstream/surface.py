"""The native surface: what one given Megatron-Core really builds, read from its source.

There is no table of Megatron versions here. The reader knows one *shape* of source, the one that
every published release of the hybrid stack has had: a class of symbols, a dataclass of submodules,
and a chain of branches that builds one field for each symbol. A source of another shape is an error
and nothing in it is native, since a reader that guesses is worse than one that refuses.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping

import attrs
from packaging.version import Version

from megatron_seams.errors import SeamsError, SymbolUnmapped
from megatron_seams.families import BY_CONSTANT
from megatron_seams.upstream.ast_queries import path_of
from megatron_seams.upstream.exclusions import Exclusion
from megatron_seams.upstream.source import MegatronSource, SourceFile, unknown_shape
from megatron_seams.upstream.stack import read_stack
from megatron_seams.upstream.symbols import read_vocabulary

#: Where the hybrid stack lives, the newest home first. Old homes stay behind as aliases.
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

    @functools.cached_property
    def provider(self) -> Native:
        """What a plan says of the layers that it builds."""
        return Native(symbol=self.symbol, slot=self.slot)


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

    @functools.cached_property
    def _indexed(self) -> Mapping[str, Mapping[str | None, NativeSymbol]]:
        # Backwards, so that of two symbols the first is found.
        symbols = self.symbols[::-1]
        return {
            key: {getattr(symbol, key): symbol for symbol in symbols}
            for key in ("family", "constant", "slot")
        }

    def of_family(self, family: str) -> NativeSymbol | None:
        """The symbol that builds a family that core knows."""
        return self._indexed["family"].get(family)

    def of_constant(self, constant: str) -> NativeSymbol | None:
        """The symbol of an upstream constant, whether or not core has a family for it."""
        return self._indexed["constant"].get(constant)

    def of_slot(self, slot: str) -> NativeSymbol | None:
        """The symbol whose layers a slot builds."""
        return self._indexed["slot"].get(slot)

    def forbidden(self, constants: Iterable[str]) -> tuple[str, ...]:
        """What upstream says against a pattern with exactly these constants."""
        present = frozenset(constants)
        said = [rule.message for rule in self.exclusions if rule.forbids(present)]
        return tuple(dict.fromkeys(said))

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
    home, block = _home(source)
    files = [_file(source, home), _file(source, block)]
    vocabulary = read_vocabulary(files[0])
    stack = read_stack(files[1], home, vocabulary.configs)
    if vocabulary.configs is not None:
        from megatron_seams.upstream.layer_configs import hold_apart

        for name, module in sorted(vocabulary.configs.modules.items()):
            files.append(_file(source, path_of(module)))
            hold_apart(files[-1], name)
    branches = {branch.constant: branch for branch in stack.branches}
    files[1].hold(
        set(branches) == set(vocabulary.layers),
        f"Symbols names {sorted(vocabulary.layers)} as layers and the stack builds "
        f"{sorted(branches)}",
    )
    for branch in stack.branches:
        files[1].hold(
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
            for name, letter in vocabulary.layers.items()
        ),
        slots=stack.slots,
        separators=vocabulary.separators,
        exclusions=vocabulary.exclusions,
        digest=digest.hexdigest(),
    )


def _home(source: MegatronSource) -> tuple[str, str]:
    for allocation, block in _HOMES:
        if source.read(allocation) is not None:
            return allocation, block
    raise unknown_shape(source.origin, "it has no hybrid stack where one is known to be")


def _file(source: MegatronSource, path: str) -> SourceFile:
    file = source.file(path)
    if file is None:
        raise unknown_shape(source.origin, f"megatron/{path} is not there")
    return file
