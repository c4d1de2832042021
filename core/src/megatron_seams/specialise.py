"""From tokens to families: the dialect first, then what the recipe says explicitly."""

from collections.abc import Iterable
from typing import Final

import attrs

from megatron_seams.dialect import Dialect, built_in
from megatron_seams.errors import Refusal, SeamsError, SpecialisationInvalid
from megatron_seams.pattern import Pattern, parse_pattern
from megatron_seams.recipe import Recipe


@attrs.frozen(kw_only=True)
class Families:
    """The family of every layer, or the faults that keep some from having one.

    Attributes:
        layers: The family of each decoder layer; None where it is a fault.
        mtp: The same for one MTP depth.
        spelled: What the tokens of the decoder's layers say by themselves.
        because: Index of a decoder layer -> how the recipe specialised it.
        faults: One for each token and each entry at fault.
    """

    layers: tuple[str | None, ...]
    mtp: tuple[str | None, ...]
    spelled: tuple[str | None, ...]
    because: dict[int, str]
    faults: tuple[SeamsError, ...]


#: Upstream's switch for latent attention. In a hybrid model its symbols say the same, so that here
#: it says what the attention layers are.
_LATENT_KEY: Final = "multi_latent_attention"


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


def families_of(recipe: Recipe, pattern: Pattern, dialect: Dialect) -> Families:
    """Give each layer its family; no token and no entry is guessed at or passed over."""
    faults: list[SeamsError] = []
    spelled: dict[str, str | None] = {}
    where: dict[str, list[int]] = {}
    for token in dict.fromkeys(pattern.tokens + pattern.mtp):
        said = dialect.family_of(token, ())
        if isinstance(said, SeamsError):
            where = where or pattern.positions()
            faults.append(attrs.evolve(said, positions=tuple(where.get(token, ()))))
        spelled[token] = None if isinstance(said, SeamsError) else said
    base = [spelled[token] for token in pattern.tokens]
    if recipe.families:
        faults.extend(_strangers(recipe, set(spelled.values())))
    because: dict[int, str] = {}
    layers = base.copy()
    targets, by_key = dict(recipe.families), "the recipe"
    if recipe.megatron.get(_LATENT_KEY) is True and "attention" not in targets:
        targets["attention"], by_key = "mla", f"[megatron] {_LATENT_KEY}"
    for index, family in enumerate(base) if targets else ():
        if family is not None and family in targets:
            layers[index] = targets[family]
            by = by_key if family not in recipe.families else "the recipe"
            because[index] = f"{by} specialises {family} as {layers[index]}"
    faults.extend(_entries(recipe, base, layers, because))
    mtp = [
        targets.get(family, family) if family else None for family in map(spelled.get, pattern.mtp)
    ]
    if _LATENT_KEY in recipe.megatron:
        faults.extend(_contradiction(recipe, {*layers, *mtp}))
    return Families(
        layers=tuple(layers),
        mtp=tuple(mtp),
        spelled=tuple(base),
        because=because,
        faults=tuple(faults),
    )


def _contradiction(recipe: Recipe, families: Iterable[str | None]) -> list[SeamsError]:
    """``multi_latent_attention`` must not say other than the layers, which decide it natively."""
    value = recipe.megatron[_LATENT_KEY]
    latent = sorted({"mla", "dsa"}.intersection(family for family in families if family))
    if value is bool(latent):
        return []
    found = f"the layers are {' and '.join(latent)}" if latent else "no layer is mla or dsa"
    return [_invalid(f"[megatron] {_LATENT_KEY} = {value!r}", found, f"megatron.{_LATENT_KEY}")]


def _strangers(recipe: Recipe, spelled: Iterable[str | None]) -> list[SeamsError]:
    present = sorted(family for family in spelled if family)
    return [
        _invalid(
            f"[families] {family} = {target!r}",
            f"no token of the pattern spells {family}; it spells {', '.join(present) or 'nothing'}",
            f"families.{family}",
        )
        for family, target in recipe.families.items()
        if family not in present
    ]


def _entries(
    recipe: Recipe, base: list[str | None], layers: list[str | None], because: dict[int, str]
) -> list[SeamsError]:
    """Apply the ``[[layers]]`` entries to ``layers``, and say what is wrong with them."""
    faults: list[SeamsError] = []
    taken: dict[int, str] = {}
    for number, entry in enumerate(recipe.layers):
        key = f"layers[{number}]"
        for position in entry.positions:
            asked = f"layer {position} as {entry.family!r}"
            if not 1 <= position <= len(layers):
                faults.append(_invalid(asked, f"the layers are 1 to {len(layers)}", key))
                continue
            found = base[position - 1]
            if entry.of is not None and found != entry.of:
                problem = f"the entry is for layers of {entry.of}; the pattern spells {found} there"
                faults.append(_invalid(asked, problem, key, (position,)))
            elif position in taken:
                problem = f"another entry makes it {taken[position]!r}"
                faults.append(_invalid(asked, problem, key, (position,)))
            else:
                taken[position] = entry.family
                layers[position - 1] = entry.family
                because[position - 1] = f"the recipe makes it {entry.family}"
    return faults


def _invalid(
    asked: str, found: str, key: str, positions: tuple[int, ...] = ()
) -> SpecialisationInvalid:
    return SpecialisationInvalid(
        asked=asked,
        found=found,
        next="mend the entry in the recipe",
        key=key,
        positions=positions,
    )
