"""Ranges of releases, as packaging compares them."""

from packaging.specifiers import SpecifierSet
from packaging.version import Version

#: A longer text is no range and no version: numbers of thousands of digits take seconds to compare.
MAX_LENGTH = 200


def is_range(text: str) -> bool:
    """Whether a text is a range of releases, ``>=0.17,<0.20``; an empty one is none."""
    return bool(text.strip()) and len(text) <= MAX_LENGTH and _accepted(SpecifierSet, text)


def is_version(text: str) -> bool:
    """Whether a text is one release, ``0.19``."""
    return len(text) <= MAX_LENGTH and _accepted(Version, text)


def _accepted(kind: type[SpecifierSet] | type[Version], text: str) -> bool:
    try:
        kind(text)
    except ValueError:  # packaging's own errors are such, and that of an integer with many digits
        return False
    return True


def contains(text: str, version: Version) -> bool:
    """Whether a range contains a release, a pre-release included.

    Raises:
        InvalidSpecifier: ``text`` is no range.
    """
    return SpecifierSet(text).contains(version, prereleases=True)
