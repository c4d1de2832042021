"""Carriers: the native slot that carries each seam's layers."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Set

import attrs

from megatron_seams.errors import NoCarrier, SeamsError, UpstreamForbids
from megatron_seams.families import Family
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.surface import NativeSurface, NativeSymbol


@attrs.frozen(kw_only=True)
class Carriers:
    """The slot that carries each seam.

    Attributes:
        slots: Seam name -> the native symbol whose slot carries it; empty if there are faults.
        faults: A fault for each combination that upstream forbids, or each seam without a carrier.
    """

    slots: Mapping[str, NativeSymbol] = attrs.field(factory=dict)
    faults: tuple[SeamsError, ...] = ()


def choose_carriers(
    surface: NativeSurface,
    native: Iterable[NativeSymbol],
    seams: Mapping[str, Seam],
    families: Mapping[str, Family],
    *,
    mtp: Iterable[NativeSymbol] = (),
) -> Carriers:
    """Give each seam the first of its slots that keeps the lowered pattern legal.

    Upstream's rules apply to the decoder and to the MTP part each by itself, as upstream applies
    them, and to the decoder twice: to the families of the layers, and to the symbols that they are
    lowered to. Upstream's parser refuses a latent attention carried by ``*`` beside native ``D``,
    although the two families may be combined.

    Args:
        surface: The Megatron to lower for.
        native: The symbols of the decoder's native layers.
        seams: The seams that build layers, by name.
        families: All families by name.
        mtp: The symbols of an MTP depth, whose layers are all native.
    """
    constants = {symbol.constant for symbol in native}
    in_mtp = frozenset(symbol.constant for symbol in mtp)
    forbids = functools.partial(surface.forbidden, mtp=in_mtp)
    ordered = [seams[name] for name in sorted(seams)]
    meant = constants | {
        constant for seam in ordered if (constant := _constant(seam, families)) is not None
    }
    forbidden = forbids(meant)
    offered = [
        [(seam.name, symbol) for slot in _slots(seam) if (symbol := surface.of_slot(slot))]
        for seam in ordered
    ]
    if forbidden or not all(offered):
        refused = [_forbidden(text, meant, in_mtp) for text in forbidden]
        absent = [seam for seam, slots in zip(ordered, offered, strict=True) if not slots]
        return Carriers(faults=(*refused, *(_no_slot(seam, surface) for seam in absent)))
    # The product begins with every seam's first slot.
    for combination in itertools.product(*offered):
        lowered = constants.union([symbol.constant for _, symbol in combination])
        if lowered == meant or not forbids(lowered):
            return Carriers(slots=dict(combination))
    symbols = [[symbol for _, symbol in slots] for slots in offered]
    return Carriers(faults=tuple(_illegal(ordered, symbols, forbids, constants)))


def _slots(seam: Seam) -> tuple[str, ...]:
    return seam.manifest.carrier.slots if seam.manifest.carrier else ()


def _constant(seam: Seam, families: Mapping[str, Family]) -> str | None:
    """Upstream's constant for the seam's family: core's own, else the one in the manifest."""
    known = families[seam.family].constant if seam.family in families else None
    return known or seam.manifest.upstream.symbol_name


def _forbidden(text: str, decoder: Set[str], mtp: Set[str]) -> UpstreamForbids:
    beside = f", and an MTP part with {', '.join(sorted(mtp))}" if mtp else ""
    return UpstreamForbids(
        asked=f"one model with {', '.join(sorted(decoder))}{beside}",
        found=f"Megatron refuses it: {text}",
        next="change the pattern or the recipe's specialisations",
    )


def _no_slot(seam: Seam, surface: NativeSurface) -> NoCarrier:
    return NoCarrier(
        asked=f"a carrier for {seam.claim}",
        found=f"its manifest offers {', '.join(_slots(seam))}; megatron-core {surface.version} has "
        f"{', '.join(symbol.slot for symbol in surface.symbols) or 'no slot'}",
        next=f"ask {seam.owner} for a release that one of those can carry",
        subject=seam.family,
    )


def _illegal(
    seams: list[Seam],
    offered: list[list[NativeSymbol]],
    forbids: Callable[[Set[str]], tuple[str, ...]],
    native: set[str],
) -> Iterator[NoCarrier]:
    """One fault for each seam without a legal slot, by itself or else because of the others."""
    alone = [
        (seam, symbols, native)
        for seam, symbols in zip(seams, offered, strict=True)
        if all(forbids(native | {symbol.constant}) for symbol in symbols)
    ]
    together = [
        (
            seam,
            symbols,
            native | {others[0].constant for others in offered if others is not symbols},
        )
        for seam, symbols in zip(seams, offered, strict=True)
    ]
    for seam, symbols, beside in alone or together:
        tried = [
            f"{symbol.slot}: {' '.join(forbids(beside | {symbol.constant})) or 'legal'}"
            for symbol in symbols
        ]
        yield NoCarrier(
            asked=f"a carrier for {seam.claim} beside {', '.join(sorted(beside))}",
            found="; ".join(tried),
            next=f"change the pattern, or ask {seam.owner} for another carrier slot",
            subject=seam.family,
        )
