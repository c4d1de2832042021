"""Allowlists: which seams operators, a workspace and a recipe allow."""

import os
import re
from collections.abc import Iterable, Mapping

import attrs

#: The environment variable of operators: names of seams, separated by spaces or commas. Set and
#: empty, it allows none.
VARIABLE = "MEGATRON_SEAMS_ALLOW"


@attrs.frozen(kw_only=True)
class Allowlist:
    """The lists that are set; a seam is allowed if each of them names it.

    Attributes:
        lists: Who set the list -> the names in it.
    """

    lists: Mapping[str, frozenset[str]] = attrs.field(factory=dict)

    def narrowed(self, by: str, names: Iterable[str] | None) -> "Allowlist":
        """The lists and one more, set by ``by``; with None there is no further list."""
        if names is None:
            return self
        return Allowlist(lists={**self.lists, by: frozenset(names)})

    def against(self, name: str) -> str | None:
        """Why the seam ``name`` is not allowed, in words; None if it is."""
        for by, names in self.lists.items():
            if name not in names:
                return f"{by} allows only {', '.join(sorted(names)) or 'native Megatron'}"
        return None


def operators_allowlist() -> Allowlist:
    """The allowlist that the environment variable sets."""
    value = os.environ.get(VARIABLE)
    names = None if value is None else [name for name in re.split(r"[\s,]+", value) if name]
    return Allowlist().narrowed(VARIABLE, names)
