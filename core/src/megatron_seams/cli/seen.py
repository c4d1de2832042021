"""Text of plugins and files as it is printed: everything in it is seen, nothing in it is obeyed.

A terminal obeys control characters, a reader is deceived by those that turn the direction of text,
and a CI service takes lines that begin in its way for commands. All output of the command line goes
through here, whoever has written the text.
"""

import re
import sys
from collections.abc import Callable
from typing import Any, Final, TextIO, cast

#: Characters that are not seen: of control, of format (direction, width), halves of pairs, and
#: separators of lines that are none. Newlines and tabs stay.
_HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U000110cd"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
#: What CI services take for a command: at the beginning of a line, and anywhere in one.
_COMMAND: Final = "::"
_MARK: Final = "##"
_ANYWHERE: Final = re.compile(r"##(?=(?:vso|teamcity)?\[)")
_WHOLE: Final = re.compile(r"##(?:vso|teamcity)?\[")
#: The characters at the end of an unfinished line that are looked at again with what follows.
_LONGEST: Final = 4096
#: What a console writes beside its text: styles, movements, the beginning and end of a link.
_STYLES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\]8;[^\x00-\x1f\x7f-\x9f]*\x1b\\|\r")


def seen(text: str) -> str:
    r"""A text with every hidden character as its escape, ``\x1b``."""
    return _without_hidden(text, _escape)


def _without_hidden(text: str, escape: Callable[[str], str]) -> str:
    # Most text is such, which is told many times faster than by the expression.
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return _HIDDEN.sub(lambda found: escape(found[0]), text)


def _escape(char: str) -> str:
    code = ord(char)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def seen_json(text: str) -> str:
    """The same JSON with every hidden character as JSON's escape, and without commands."""
    escaped = _without_hidden(text, _json_escape)
    # Only a string holds these characters, and its beginning is no line's.
    return _ANYWHERE.sub(r"#\\u0023", escaped)


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


class Seen:
    """A standard stream whose text is made seen.

    Args:
        stream: The stream.
        styles: Whether the sequences by which a console styles text, and moves in its own output,
            are let through: that console has made its text seen already.
    """

    def __init__(self, stream: TextIO, *, styles: bool = False) -> None:
        self._stream = stream
        self._styles = styles
        self._line = ""  # what has been written of the present line

    @property
    def styled(self) -> TextIO:
        """The stream for a console that makes its text seen by itself."""
        return cast("TextIO", self if self._styles else Seen(self._stream, styles=True))

    def write(self, text: str) -> int:
        """Write text, in which no line is a command."""
        shown = self._shown(text)
        # Text without such characters, begun by an earlier write or not, is not looked at by lines.
        whole = self._line + shown
        visible = _STYLES.sub("", whole) if self._styles else whole
        if _COMMAND in visible or _MARK in visible:
            shown = "".join(map(self._safe, shown.splitlines(True)))
        else:
            self._line = whole[whole.rfind("\n") + 1 :][-_LONGEST:]
        self._stream.write(shown)
        return len(text)

    def write_commands(self, text: str) -> None:
        """Write lines each of which is a command of ours."""
        self._stream.write(_ANYWHERE.sub(r"#\\#", seen(text)))
        self._line = ""

    def _shown(self, text: str) -> str:
        if not self._styles:
            return seen(text)
        parts = re.split(f"({_STYLES.pattern})", text)
        return "".join(part if number % 2 else seen(part) for number, part in enumerate(parts))

    def _safe(self, part: str) -> str:
        """A part of a line, broken where it would complete a command."""
        before = _STYLES.sub("", self._line).lstrip()
        cut = len(before)
        if any(it.start() < cut < it.end() for it in _WHOLE.finditer(before + part)):
            part = f"\\{part}"
        part = _ANYWHERE.sub(r"#\\#", part)
        whole = before + _STYLES.sub("", part)
        if not before.startswith(_COMMAND) and whole.lstrip().startswith(_COMMAND):
            part = part.replace(":", "\\:", 1)
        self._line = "" if part.endswith("\n") else (self._line + part)[-_LONGEST:]
        return part

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's; but not its bytes, which would be written unseen."""
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self._stream, name)


def make_output_seen() -> None:
    """From now on the text of both standard streams is made seen."""
    sys.stdout = cast("TextIO", Seen(sys.stdout))
    sys.stderr = cast("TextIO", Seen(sys.stderr))


def write_commands(text: str) -> None:
    """Print lines to standard output each of which is a command of ours for a CI service."""
    write = getattr(sys.stdout, "write_commands", None) or sys.stdout.write
    write(text)
