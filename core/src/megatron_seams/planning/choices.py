"""The providers of a whole model: one choice for each family that it requests."""

from collections.abc import Mapping

import attrs

from megatron_seams.base.wording import counted
from megatron_seams.errors import SeamInMtp, SeamsError
from megatron_seams.families import BUILT_IN
from megatron_seams.planning.choice import Choice, Chooser
from megatron_seams.planning.requests import Request, Requests
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.surface import NativeSymbol


@attrs.frozen(kw_only=True)
class Choices:
    """The provider of each family that was requested.

    Attributes:
        layers: Family -> choice, for the decoder's layers.
        mtp: Family -> native symbol, for the layers of an MTP depth.
        features: Family -> choice, or the fault that it has no provider, for the features.
        blocks: Families of layers that the recipe wrongly lists as features.
        faults: A fault for each family without a provider, with the numbers of its layers.
    """

    layers: Mapping[str, Choice]
    mtp: Mapping[str, NativeSymbol]
    features: Mapping[str, Choice | SeamsError]
    blocks: frozenset[str] = frozenset()
    faults: tuple[SeamsError, ...] = ()

    @property
    def native(self) -> tuple[NativeSymbol, ...]:
        """The native symbols of the decoder's layers."""
        chosen = (choice.provider for choice in self.layers.values())
        return tuple(provider for provider in chosen if isinstance(provider, NativeSymbol))

    @property
    def seams(self) -> Mapping[str, Seam]:
        """The seams that build layers, by name."""
        chosen = (choice.provider for choice in self.layers.values())
        return {seam.name: seam for seam in chosen if isinstance(seam, Seam)}


def choose(requests: Requests, chooser: Chooser) -> Choices:
    """Choose a provider for every family that a model requests, each family once.

    Args:
        requests: The families, with their layers and features.
        chooser: The rules, for one environment and one recipe.
    """
    found = {family: chooser.choose(family, of_layer=True) for family in requests.layers}
    faults: list[SeamsError] = []
    for family, choice in found.items():
        if isinstance(choice, SeamsError) and requests.layers[family].positions:
            faults.append(_at(choice, requests.layers[family], requests))
    for request in sorted(requests.layers.values(), key=lambda it: it.mtp):
        choice = found[request.family]
        if isinstance(choice, SeamsError):
            faults += [] if request.positions else [choice]
        elif request.mtp and isinstance(choice.provider, Seam):
            faults.append(_seam_in_mtp(choice.provider, request, requests))
    listed = dict.fromkeys(entry.family for entry in requests.features)
    blocks = frozenset(family for family in listed if chooser.is_block(family))
    features = {
        family: chooser.choose(family, of_layer=False) for family in listed if family not in blocks
    }
    return Choices(
        layers={
            family: choice
            for family, choice in found.items()
            if isinstance(choice, Choice) and requests.layers[family].positions
        },
        mtp={
            family: choice.provider
            for family, choice in found.items()
            if isinstance(choice, Choice)
            and isinstance(choice.provider, NativeSymbol)
            and requests.layers[family].mtp
        },
        features=features,
        blocks=blocks,
        faults=tuple(faults),
    )


def _at(fault: SeamsError, request: Request, requests: Requests) -> SeamsError:
    """The fault with the layers that it concerns, and with the family that their tokens spell."""
    tokens = dict.fromkeys(requests.pattern.tokens[at - 1] for at in request.positions)
    count = counted(len(request.positions), "layer")
    found = fault.found
    others = {requests.spelled[token] for token in tokens} - {request.family, None}
    if others:
        spelled = " and ".join(sorted(_described(name) for name in others if name))
        because = next(filter(None, map(requests.because, request.positions)))
        found += f"; {because}, and {spelled} is not taken in its place"
    return attrs.evolve(
        fault,
        asked=f"{fault.asked} (token {', '.join(map(repr, tokens))}, {count})",
        found=found,
        positions=request.positions,
    )


def _described(family: str) -> str:
    known = BUILT_IN.get(family)
    return f"{family} ({known.summary.rstrip('.')})" if known else family


def _seam_in_mtp(seam: Seam, request: Request, requests: Requests) -> SeamInMtp:
    part = requests.pattern.mtp
    token = part[request.mtp[0] - 1]
    because = requests.because_of(token)
    return SeamInMtp(
        asked=f"{seam.claim} for token {token!r} of MTP part {part!r}",
        found="an MTP depth builds its layers from native parts only, with numbers of its own"
        + (f"; {because}, there too" if because else ""),
        next="spell the MTP part with native families",
        subject=request.family,
    )
