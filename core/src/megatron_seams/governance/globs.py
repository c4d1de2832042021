"""Globs of CODEOWNERS: which files a pattern takes.

The rules are gitignore's, but that ``docs/*`` does not reach into folders. A path takes at most the
product of its length and the pattern's, however many asterisks there are. (pathspec was used
before: its expressions backtrack at each asterisk, and one path could take a minute at the eighth.)
"""

import fnmatch
import re
from collections.abc import Iterator
from typing import Final

import attrs

#: Segments of any names, as many as there are.
_SOME: Final = None
#: A character behind a backslash, or one that may stand for others.
_CHARACTER: Final = re.compile(r"\\(.)|(.)", re.DOTALL)


@attrs.frozen(kw_only=True)
class Glob:
    """A pattern, read.

    Attributes:
        segments: For each segment of a path its name, or an expression for it; None for any number
            of segments.
    """

    segments: tuple[str | re.Pattern[str] | None, ...]

    def takes(self, path: str) -> bool:
        """Whether the pattern matches a file: its path from the root, without a leading slash."""
        names, segments = path.split("/"), self.segments
        # Segments between two nones match best as early as they can, so that only the place after
        # the latest none is tried again, further on.
        at = latest = tried = 0
        name = 0
        while name < len(names):
            segment = segments[at] if at < len(segments) else ""
            if segment is _SOME:
                at = latest = at + 1
                tried = name
            elif segment == names[name] if isinstance(segment, str) else segment.match(names[name]):
                at, name = at + 1, name + 1
            elif latest:
                tried += 1
                at, name = latest, tried
            else:
                return False
        return all(segment is _SOME for segment in segments[at:])


def read_glob(pattern: str) -> Glob:
    """Read a pattern that is not empty, without a negation and ranges of characters."""
    return Glob(segments=tuple(_segments(pattern)))


def _segments(pattern: str) -> Iterator[str | re.Pattern[str] | None]:
    first, *rest = pattern.split("/")
    # A slash at the beginning or in the middle ties the pattern to the root.
    if first and (not rest or rest == [""]):
        yield _SOME
    *before, last = [first, *rest] if first else rest
    for segment in before:
        yield _SOME if segment == "**" else _segment(segment)
    if not last and before[-1] == "**":
        yield _segment("*")  # a folder is some segment
    if not last or (last == "**" and before):
        # What is in a folder, and not the folder, nor a file of its name.
        yield _segment("*")
        yield _SOME
    elif last == "**":
        yield _SOME
    else:
        yield _segment(last)
        if last != "*" or not rest:  # `docs/*` does not reach into folders
            yield _SOME


def _segment(text: str) -> str | re.Pattern[str]:
    """A segment's name, or an expression for it; fnmatch's do not backtrack."""
    characters = [
        (escaped or plain, plain in ("*", "?")) for escaped, plain in _CHARACTER.findall(text)
    ]
    if not any(wild for _, wild in characters):
        return "".join(character for character, _ in characters)
    quoted = (it if wild or it not in "*?[" else f"[{it}]" for it, wild in characters)
    return re.compile(fnmatch.translate("".join(quoted)))
