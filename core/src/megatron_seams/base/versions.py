"""Ranges of releases, as packaging compares them.

The commonest range, ``>=0.17,<0.20`` held against a release, is only two comparisons, and
those are made here: what judges every other range (packaging.specifiers) loads a great deal more
than it, for a question that every ``registry list`` asks.
"""

import functools
import re
from typing import TYPE_CHECKING

from packaging.version import Version

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

_BOUND = r"\s*(?:>=|<)\s*\d{1,9}(?:\.\d{1,9})*\s*"
_BOUNDS = re.compile(rf"{_BOUND}(?:,{_BOUND})*", re.ASCII)


def specifiers(text: str) -> "SpecifierSet":
    """A range, in packaging's own form.

    Raises:
        InvalidSpecifier: It is none.
    """
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(text)


def is_range(text: str) -> bool:
    """Whether a text is a range of releases, ``>=0.17,<0.20``."""
    if _bounds(text) is not None:
        return True
    from packaging.specifiers import InvalidSpecifier

    try:
        specifiers(text)
    except InvalidSpecifier:
        return False
    return True


def contains(text: str, version: Version) -> bool:
    """Whether a range contains a release, a pre-release included."""
    bounds = _bounds(text)
    # Of a pre-release, "<0.20" leaves out more than what is not less.
    if bounds is None or version.is_prerelease:
        return specifiers(text).contains(version, prereleases=True)
    return all(version >= bound if at_least else version < bound for at_least, bound in bounds)


@functools.cache
def _bounds(text: str) -> tuple[tuple[bool, Version], ...] | None:
    """The bounds of one of the commonest ranges, lower ones marked; None for any other."""
    if not _BOUNDS.fullmatch(text):
        return None
    bounds = map(str.strip, text.split(","))
    return tuple((bound.startswith(">="), Version(bound.lstrip("<>="))) for bound in bounds)
