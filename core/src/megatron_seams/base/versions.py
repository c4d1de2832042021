"""Ranges of releases, as packaging compares them."""

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version


def is_range(text: str) -> bool:
    """Whether a text is a range of releases, ``>=0.17,<0.20``."""
    try:
        SpecifierSet(text)
    except InvalidSpecifier:
        return False
    return True


def contains(text: str, version: Version) -> bool:
    """Whether a range contains a release, a pre-release included.

    Raises:
        InvalidSpecifier: ``text`` is no range.
    """
    return SpecifierSet(text).contains(version, prereleases=True)
