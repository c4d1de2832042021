"""Ranks: a layer's number, from 0, among the decoder's layers whose tokens spell one family."""

from collections.abc import Iterable, Mapping, Sequence

from megatron_seams.recipes.pattern import Pattern


def layers_at(
    ranks: Sequence[int], of: str, pattern: Pattern, spelled: Mapping[str, str | None]
) -> tuple[tuple[int, ...], str]:
    """The layers at some ranks of a family.

    Args:
        ranks: From 0.
        of: The family that the layers' tokens spell.
        pattern: The pattern.
        spelled: Token -> the dialect's family for it.

    Returns:
        The 1-based global layer numbers in the order of ``ranks``, and no text; or none, and why
        not.
    """
    found = [at for at, token in enumerate(pattern.tokens, start=1) if spelled[token] == of]
    if not found:
        present = sorted({family for token in pattern.tokens if (family := spelled[token])})
        listed = ", ".join(present) or "none"
        if of in spelled.values():
            return (), f"only the MTP part spells {of}; ranks count the decoder's layers: {listed}"
        return (), f"no token of the pattern spells {of}; it spells {listed}"
    if len(set(ranks)) < len(ranks):
        return (), f"ranks has a number twice: {list(ranks)}"
    beyond = [rank for rank in ranks if not 0 <= rank < len(found)]
    if beyond:
        listed = ", ".join(map(str, beyond))
        return (), f"the layers of {of} have ranks 0 to {len(found) - 1}, and no {listed}"
    return tuple(found[rank] for rank in ranks), ""


def ranks_of(families: Iterable[str]) -> tuple[int, ...]:
    """The rank of each layer, from the family that its token spells, layer 1 first."""
    counts: dict[str, int] = {}
    ranks = []
    for family in families:
        ranks.append(counts.setdefault(family, 0))
        counts[family] += 1
    return tuple(ranks)
