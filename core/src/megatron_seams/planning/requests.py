"""From tokens to families: the dialect first, then what the recipe says explicitly."""

from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from megatron_seams.errors import Refusal, SeamsError, SpecialisationInvalid
from megatron_seams.recipes.dialect import Dialect, built_in
from megatron_seams.recipes.pattern import Pattern, parse_pattern
from megatron_seams.recipes.recipe import Recipe


@attrs.frozen(kw_only=True)
class Families:
    """The family of every layer, or the faults that keep some from having one.

    Attributes:
        of_token: Token -> the family of its layers; None where it is a fault.
        of_layer: 1-based number of each decoder layer that the recipe names by it -> its family.
        present: The families of the decoder's layers.
        mtp: The family of each layer of one MTP depth.
        spelled: Token -> the family that it says by itself.
        because: Token -> how the recipe specialised it.
        faults: One for each token and each entry at fault.
    """

    of_token: Mapping[str, str | None]
    of_layer: Mapping[int, str]
    present: tuple[str | None, ...]
    mtp: tuple[str | None, ...]
    spelled: Mapping[str, str | None]
    because: Mapping[str, str]
    faults: tuple[SeamsError, ...]

    def why(self, position: int, token: str) -> str:
        """How the recipe specialised one layer of the decoder; empty where it did not."""
        if position in self.of_layer:
            return f"the recipe makes it {self.of_layer[position]}"
        return self.because.get(token, "")


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
    tokens = pattern.tokens + pattern.mtp
    spelled: dict[str, str | None] = {
        token: family for token, family in dialect.tokens.items() if token in tokens
    }
    faults: list[SeamsError] = []
    if strange := set(tokens).difference(spelled):
        where = pattern.positions()
        for token in sorted(strange, key=tokens.index):
            spelled[token] = None
            faults.append(dialect.unspelled(token, tuple(where.get(token, ()))))
    if recipe.families:
        faults.extend(_strangers(recipe, set(spelled.values())))
    of_token, because = _specialised(recipe, spelled)
    of_layer: dict[int, str] = {}
    if recipe.layers:
        of_layer, problems = _entries(recipe, pattern, spelled)
        faults.extend(problems)
    present: Iterable[str | None] = of_token.values()
    if of_layer or pattern.mtp:  # then a token may have no layer in the decoder
        present = pattern.spread(of_token, of_layer)
    mtp = tuple([of_token[token] for token in pattern.mtp])
    if _LATENT_KEY in recipe.megatron:
        faults.extend(_contradiction(recipe, {*present, *mtp}))
    return Families(
        of_token=of_token,
        of_layer=of_layer,
        present=tuple(dict.fromkeys(present)),
        mtp=mtp,
        spelled=spelled,
        because=because,
        faults=tuple(faults),
    )


def _specialised(
    recipe: Recipe, spelled: Mapping[str, str | None]
) -> tuple[Mapping[str, str | None], Mapping[str, str]]:
    """Token -> family where the recipe specialises whole families, and token -> how it does."""
    targets = {family: (target, "the recipe") for family, target in recipe.families.items()}
    if recipe.megatron.get(_LATENT_KEY) is True:
        targets.setdefault("attention", ("mla", f"[megatron] {_LATENT_KEY}"))
    if not targets:
        return spelled, {}
    meant = dict(spelled)
    because: dict[str, str] = {}
    for token, family in spelled.items():
        if family in targets:
            meant[token], by = targets[family]
            because[token] = f"{by} specialises {family} as {meant[token]}"
    return meant, because


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
    recipe: Recipe, pattern: Pattern, spelled: Mapping[str, str | None]
) -> tuple[dict[int, str], list[SeamsError]]:
    """1-based layer number -> family by the ``[[layers]]`` entries, and what is wrong with them."""
    faults: list[SeamsError] = []
    taken: dict[int, str] = {}
    for number, entry in enumerate(recipe.layers):
        key = f"layers[{number}]"
        for position in entry.positions:
            asked = f"layer {position} as {entry.family!r}"
            if not 1 <= position <= pattern.depth:
                faults.append(_invalid(asked, f"the layers are 1 to {pattern.depth}", key))
                continue
            found = spelled[pattern.tokens[position - 1]]
            if entry.of is not None and found != entry.of:
                problem = f"the entry is for layers of {entry.of}; the pattern spells {found} there"
                faults.append(_invalid(asked, problem, key, (position,)))
            elif position in taken:
                problem = f"another entry makes it {taken[position]!r}"
                faults.append(_invalid(asked, problem, key, (position,)))
            else:
                taken[position] = entry.family
    return taken, faults


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
