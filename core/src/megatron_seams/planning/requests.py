"""Requests: each family of a recipe with its layers and features, and why it is that family."""

from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from megatron_seams.errors import Refusal, SeamsError, SpecialisationInvalid
from megatron_seams.families import LATENT
from megatron_seams.planning.ranks import layers_at
from megatron_seams.recipes.dialect import Dialect, built_in
from megatron_seams.recipes.pattern import Pattern, parse_pattern
from megatron_seams.recipes.recipe import FeatureEntry, Recipe

#: Upstream's switch for latent attention. A hybrid model has symbols for it, so a recipe that sets
#: the switch specialises its attention layers.
_LATENT_KEY: Final = "multi_latent_attention"


@attrs.frozen(kw_only=True)
class Request:
    """A family, and the layers that are of it.

    Attributes:
        family: Its name.
        positions: The 1-based numbers of its decoder layers, ascending.
        mtp: The 1-based numbers of its layers in one MTP depth, ascending.
    """

    family: str
    positions: tuple[int, ...] = ()
    mtp: tuple[int, ...] = ()


@attrs.frozen(kw_only=True)
class Requests:
    """Everything that a model needs built.

    Attributes:
        pattern: The pattern, read and expanded.
        layers: Family -> its request, in the order of the first layer.
        spelled: Token -> the dialect's family for it; None where the dialect has none.
        moved: Token -> why the recipe gives its layers another family, where it does.
        named: 1-based layer number -> family, for the layers of the recipe's ``[[layers]]``.
        features: The recipe's ``[[features]]``.
        faults: Tokens without a family, and entries of the recipe that fit no layer.
    """

    pattern: Pattern
    layers: Mapping[str, Request]
    spelled: Mapping[str, str | None]
    moved: Mapping[str, str] = attrs.field(factory=dict)
    named: Mapping[int, str] = attrs.field(factory=dict)
    features: tuple[FeatureEntry, ...] = ()
    faults: tuple[SeamsError, ...] = ()

    def because(self, position: int) -> str:
        """Why the recipe gives a decoder layer another family; empty where it does not."""
        if position in self.named:
            return f"the recipe makes it {self.named[position]}"
        return self.because_of(self.pattern.tokens[position - 1])

    def because_of(self, token: str) -> str:
        """Why the recipe gives all layers of a token another family; empty where it does not."""
        return self.moved.get(token, "")


def read_pattern(recipe: Recipe) -> tuple[Pattern, Dialect]:
    """The recipe's pattern, expanded, and the dialect that it is written in.

    Raises:
        Refusal: The pattern cannot be read, or there is no such dialect.
    """
    faults: list[SeamsError] = []
    dialect = built_in(recipe.model.dialect)
    if isinstance(dialect, SeamsError):
        faults.append(dialect)
    else:
        dialect, problems = dialect.extended(recipe.dialect.tokens)
        faults.extend(problems)
    try:
        pattern = parse_pattern(
            recipe.model.pattern, dialect=recipe.model.dialect, depth=recipe.model.depth
        )
    except SeamsError as fault:
        faults.append(fault)
    if faults or isinstance(dialect, SeamsError):
        raise Refusal(faults)
    return pattern, dialect


def read_requests(recipe: Recipe, pattern: Pattern, dialect: Dialect) -> Requests:
    """Give each layer its family: by the dialect, then ``[families]``, then ``[[layers]]``."""
    spelled = _spelled(pattern, dialect)
    meant, moved = _specialised(recipe, spelled)
    named, entry_faults = _named(recipe, pattern, spelled)
    decoder: dict[str, list[int]] = {}
    for position, token in enumerate(pattern.tokens, start=1):
        family = named.get(position, meant[token])
        if family is not None:
            decoder.setdefault(family, []).append(position)
    mtp: dict[str, list[int]] = {}
    for position, token in enumerate(pattern.mtp, start=1):
        if (family := meant[token]) is not None:
            mtp.setdefault(family, []).append(position)
    layers = {
        family: Request(
            family=family, positions=tuple(decoder.get(family, ())), mtp=tuple(mtp.get(family, ()))
        )
        for family in {**decoder, **mtp}
    }
    return Requests(
        pattern=pattern,
        layers=layers,
        spelled=spelled,
        moved=moved,
        named=named,
        features=recipe.features,
        faults=(
            *_unspelled(pattern, dialect, spelled),
            *_strangers(recipe, spelled),
            *entry_faults,
            *_contradiction(recipe, layers),
        ),
    )


def _spelled(pattern: Pattern, dialect: Dialect) -> dict[str, str | None]:
    """Token of the pattern -> the dialect's family for it; None where it has none."""
    tokens = pattern.tokens + pattern.mtp
    return {token: dialect.tokens.get(token) for token in dict.fromkeys(tokens)}


def _unspelled(
    pattern: Pattern, dialect: Dialect, spelled: Mapping[str, str | None]
) -> Iterator[SeamsError]:
    where = pattern.positions()
    for token, family in spelled.items():
        if family is None:
            yield dialect.unspelled(token, tuple(where.get(token, ())))


def _specialised(
    recipe: Recipe, spelled: Mapping[str, str | None]
) -> tuple[Mapping[str, str | None], Mapping[str, str]]:
    """Token -> family after the recipe's specialisation of whole families, and token -> why."""
    targets = {family: (target, "the recipe") for family, target in recipe.families.items()}
    if recipe.megatron.get(_LATENT_KEY) is True:
        targets.setdefault("attention", ("mla", f"[megatron] {_LATENT_KEY}"))
    meant = dict(spelled)
    because: dict[str, str] = {}
    for token, family in spelled.items():
        if family in targets:
            meant[token], by = targets[family]
            because[token] = f"{by} specialises {family} as {meant[token]}"
    return meant, because


def _contradiction(recipe: Recipe, layers: Mapping[str, Request]) -> Iterator[SeamsError]:
    """The fault that ``multi_latent_attention`` contradicts the layers, which decide it here."""
    value = recipe.megatron.get(_LATENT_KEY)
    latent = sorted(LATENT.intersection(layers))
    if _LATENT_KEY not in recipe.megatron or value is bool(latent):
        return
    found = f"the layers are {' and '.join(latent)}" if latent else "no layer is mla or dsa"
    yield _invalid(f"[megatron] {_LATENT_KEY} = {value!r}", found, f"megatron.{_LATENT_KEY}")


def _strangers(recipe: Recipe, spelled: Mapping[str, str | None]) -> Iterator[SeamsError]:
    """``[families]`` entries for families that no token spells."""
    present = sorted({family for family in spelled.values() if family})
    for family, target in recipe.families.items():
        if family not in present:
            yield _invalid(
                f"[families] {family} = {target!r}",
                f"no token of the pattern spells {family}; it spells "
                f"{', '.join(present) or 'nothing'}",
                f"families.{family}",
            )


def _named(
    recipe: Recipe, pattern: Pattern, spelled: Mapping[str, str | None]
) -> tuple[dict[int, str], list[SeamsError]]:
    """1-based layer number -> family by the ``[[layers]]`` entries, and their faults."""
    faults: list[SeamsError] = []
    taken: dict[int, int] = {}
    for number, entry in enumerate(recipe.layers):
        key = f"layers[{number}]"
        positions = entry.positions or ()
        if entry.ranks is not None and entry.of is not None:
            positions, problem = layers_at(entry.ranks, entry.of, pattern, spelled)
            if problem:
                asked = f"ranks {list(entry.ranks)} of {entry.of} as {entry.family!r}"
                faults.append(_invalid(asked, problem, key))
        for position in positions:
            asked = f"layer {position} as {entry.family!r}"
            if not 1 <= position <= pattern.depth:
                faults.append(_invalid(asked, f"the layers are 1 to {pattern.depth}", key))
                continue
            found = spelled[pattern.tokens[position - 1]]
            if entry.of is not None and found != entry.of:
                problem = f"the entry is for layers of {entry.of}; the pattern spells "
                problem += f"{found or 'no family'} there"
                faults.append(_invalid(asked, problem, key, (position,)))
            elif position in taken:
                other = recipe.layers[taken[position]].family
                problem = f"another entry makes it {other!r}"
                if taken[position] == number:
                    problem = f"positions has a number twice: {list(positions)}"
                faults.append(_invalid(asked, problem, key, (position,)))
            else:
                taken[position] = number
    return {at: recipe.layers[number].family for at, number in taken.items()}, faults


def _invalid(
    asked: str, found: str, key: str, positions: tuple[int, ...] = ()
) -> SpecialisationInvalid:
    return SpecialisationInvalid(
        asked=asked,
        found=found,
        next="correct the entry in the recipe",
        key=key,
        positions=positions,
    )
