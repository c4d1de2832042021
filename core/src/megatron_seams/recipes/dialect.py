"""Dialects: which family each token of a pattern spells."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from megatron_seams.errors import AmbiguousToken, DialectInvalid, SeamsError, UnknownToken
from megatron_seams.families import NAME

#: Characters that structure a pattern and so can be no one's token.
RESERVED: Final = frozenset("|/")


@attrs.frozen(kw_only=True)
class Dialect:
    """A map token -> family.

    Attributes:
        name: How recipes and messages call it.
        tokens: Single character -> family.
        ambiguous: Single character -> why it has no one meaning here.
    """

    name: str
    tokens: Mapping[str, str]
    ambiguous: Mapping[str, str] = MappingProxyType({})

    def family_of(self, token: str, positions: tuple[int, ...]) -> str | SeamsError:
        """The family that ``token`` spells, or the fault that it spells none.

        Args:
            token: One character.
            positions: The layers that carry it, for the message.
        """
        if token in self.tokens:
            return self.tokens[token]
        return self.unspelled(token, positions)

    def unspelled(self, token: str, positions: tuple[int, ...]) -> SeamsError:
        """The fault that a token spells no family; arguments as for :meth:`family_of`."""
        if token in self.ambiguous:
            return AmbiguousToken(
                asked=f"the family of token {token!r} in dialect {self.name!r}",
                found=self.ambiguous[token],
                next=f'say which in the recipe: [dialect.tokens] {_quoted(token)} = "<family>"',
                subject=token,
                positions=positions,
            )
        return UnknownToken(
            asked=f"the family of token {token!r} in dialect {self.name!r}",
            found=f"the dialect has {self.spelled()}",
            next=(
                "correct the pattern, choose another dialect, or give the token a family in the "
                f'recipe: [dialect.tokens] {_quoted(token)} = "<family>"'
            ),
            subject=token,
            positions=positions,
        )

    def spelled(self) -> str:
        """The tokens as a message lists them."""
        return ", ".join(f"{token} {family}" for token, family in self.tokens.items()) or "no token"

    def extended(self, tokens: Mapping[str, str]) -> tuple["Dialect", tuple[SeamsError, ...]]:
        """This dialect with a recipe's tokens added.

        An ambiguous token may be settled and a new one added; a token that already has a meaning
        may not be given another, since every reader of the pattern would misread it.

        Returns:
            The extended dialect, and the faults of the entries that could not be taken.
        """
        if not tokens:
            return self, ()
        faults: list[SeamsError] = []
        added = dict(self.tokens)
        for token, family in tokens.items():
            problem = self._problem(token, family)
            if problem:
                faults.append(
                    DialectInvalid(
                        asked=f"token {token!r} for family {family!r}",
                        found=problem,
                        next="correct [dialect.tokens] in the recipe; to build a family otherwise, "
                        "specialise it in [families]",
                        subject=token,
                        key="dialect.tokens",
                    )
                )
            else:
                added[token] = family
        left = {token: why for token, why in self.ambiguous.items() if token not in added}
        return attrs.evolve(self, tokens=added, ambiguous=left), tuple(faults)

    def _problem(self, token: str, family: str) -> str | None:
        if len(token) != 1 or token.isspace() or not token.isprintable():
            return "a token is one visible character"
        if token in RESERVED:
            return f"{token!r} separates stages and MTP depths"
        if not NAME.match(family):
            return "a family is named like [a-z][a-z0-9_]*"
        if self.tokens.get(token, family) != family:
            return f"dialect {self.name!r} already spells {self.tokens[token]!r} with it"
        return None


def _quoted(token: str) -> str:
    # A bare TOML key is alphanumeric; every other token must be quoted in the advice we give.
    # JSON's strings are TOML's: a quote is escaped, and so is what would move a terminal's cursor.
    bare = token.isascii() and token.isalnum()
    return token if bare else json.dumps(token, ensure_ascii=not token.isprintable())


MEGATRON: Final = Dialect(
    name="megatron",
    tokens=MappingProxyType(
        {
            "M": "mamba",
            "G": "gdn",
            "*": "attention",
            "D": "dsa",
            "+": "mla",
            "-": "mlp",
            "E": "moe",
        }
    ),
)

NAM: Final = Dialect(
    name="nam",
    tokens=MappingProxyType({"A": "attention", "M": "mamba", "E": "moe", "R": "recurrent"}),
    ambiguous=MappingProxyType(
        {"D": "published tables disagree: sparse attention (dsa) in one, a dense mlp in another"}
    ),
)

BUILT_IN: Final = MappingProxyType({dialect.name: dialect for dialect in (MEGATRON, NAM)})


def built_in(name: str) -> Dialect | SeamsError:
    """The dialect of that name, or the fault that there is none."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    return DialectInvalid(
        asked=f"dialect {name!r}",
        found=f"the dialects are {', '.join(BUILT_IN)}",
        next="name one of them; a recipe may add tokens of its own in [dialect.tokens]",
        subject=name,
    )
