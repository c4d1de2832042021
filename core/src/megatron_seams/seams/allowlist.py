"""Which seams may be used at all: what operators, a workspace and a recipe allow."""

import os
import re
from collections.abc import Iterable, Mapping

import attrs

#: Names of seams, apart by spaces or commas. Set and empty, it allows none.
VARIABLE = "MEGATRON_SEAMS_ALLOW"


@attrs.frozen(kw_only=True)
class Allowlist:
    """Every list that is set; a seam is allowed if all of them name it.

    Attributes:
        lists: Who says so -> the names.
    """

    lists: Mapping[str, frozenset[str]] = attrs.field(factory=dict)

    def narrowed(self, by: str, names: Iterable[str] | None) -> "Allowlist":
        """This one with one list more; None is no list."""
        if names is None:
            return self
        return Allowlist(lists={**self.lists, by: frozenset(names)})

    def against(self, name: str) -> str | None:
        """Which list leaves the seam ``name`` out, in words; None if it is allowed."""
        for by, names in self.lists.items():
            if name not in names:
                return f"{by} allows only {', '.join(sorted(names)) or 'native Megatron'}"
        return None


def operators_allowlist() -> Allowlist:
    """What the environment variable says."""
    said = os.environ.get(VARIABLE)
    names = None if said is None else [name for name in re.split(r"[\s,]+", said) if name]
    return Allowlist().narrowed(VARIABLE, names)
