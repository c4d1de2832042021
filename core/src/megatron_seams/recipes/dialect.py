"""Dialects: the family of each token of a pattern."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from megatron_seams.errors import AmbiguousToken, DialectInvalid, SeamsError, UnknownToken
from megatron_seams.families import NAME

#: Characters that structure a pattern, and so cannot be tokens.
RESERVED: Final = frozenset("|/")


@attrs.frozen(kw_only=True)
class Dialect:
    """A map token -> family.

    Attributes:
        name: The name that recipes and messages use.
        tokens: Single character -> family.
        ambiguous: Single character -> why it has no single meaning here.
    """

    name: str
    tokens: Mapping[str, str]
    ambiguous: Mapping[str, str] = MappingProxyType({})

    def family_of(self, token: str, positions: tuple[int, ...]) -> str | SeamsError:
        """The family of ``token``, or the fault that it has none.

        Args:
            token: One character.
            positions: The 1-based numbers of its layers, for the message.
        """
        if token in self.tokens:
            return self.tokens[token]
        return self.unspelled(token, positions)

    def unspelled(self, token: str, positions: tuple[int, ...]) -> SeamsError:
        """The fault that a token has no family; arguments as for :meth:`family_of`."""
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

        A recipe may settle an ambiguous token and add a new one. It may not give another meaning to
        a token that has one, since every reader of the pattern would misread it.

        Returns:
            The extended dialect, and a fault for each entry that is not valid.
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
    # A bare TOML key is alphanumeric; the advice must quote every other token. JSON's strings are
    # valid in TOML: quotes are escaped, and so are characters that would move a terminal's cursor.
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
    tokens=MappingProxyType(
        {
            "A": "attention",
            "M": "mamba",
            "G": "gdn",
            "E": "moe",
            "F": "mlp",
            "R": "recurrent",
        }
    ),
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
