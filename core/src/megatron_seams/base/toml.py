"""Reading TOML, and finding the line on which a key is set.

No TOML reader for Python gives positions. The standard library's finds them all the same: a key is
set by the statement at whose end the text so far holds it for the first time.
"""

import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from megatron_seams.base.files import in_words, read_at_most, read_file
from megatron_seams.errors import SeamsError

#: The size of the largest file that is read: a recipe, or any project's ``pyproject.toml``.
MAX_BYTES: Final = 4 * 1024 * 1024
#: The parts of a dotted key: reading one takes the square of their number.
_MAX_PARTS: Final = 100
_LONG_KEY: Final = re.compile(
    r"""(?<![A-Za-z0-9_-])(?:(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+)"""
    rf"{{{_MAX_PARTS}}}"
)

#: A file with more lines, or a larger one, is not searched for the lines of keys: each line costs a
#: reading of those before it.
_MAX_LINES: Final = 400
_MAX_SEARCHED: Final = 64 * 1024
#: The bytes that are read again for the keys of one file, at a megabyte a second.
_MAX_READ_AGAIN: Final = 1024 * 1024


class TomlError(ValueError):
    """A file that cannot be read, or a text that is no TOML; its message says why."""


def read_toml(source: Path | bytes) -> dict[str, Any]:
    """The table that a TOML file, or the bytes of one, spells.

    Raises:
        TomlError: The file cannot be read, is larger than :data:`MAX_BYTES`, not UTF-8, or no TOML.
    """
    try:
        data = read_file(source, MAX_BYTES) if isinstance(source, Path) else source
        text = data.decode("utf-8-sig")
        # Counted first: most texts have fewer dots, and to look for such a key takes long.
        if text.count(".") >= _MAX_PARTS and _LONG_KEY.search(text):
            message = f"a key has more than {_MAX_PARTS} parts"
            raise TomlError(message)
        return tomllib.loads(text)
    except RecursionError as error:
        message = "its arrays or tables are nested too deeply"
        raise TomlError(message) from error
    except (OSError, ValueError) as error:  # the limit on the digits of an integer is a ValueError
        raise TomlError(in_words(error)) from error


def with_lines(faults: Iterable[SeamsError]) -> list[SeamsError]:
    """Faults with the line of their key, where they name a TOML file that can be read."""
    listed = list(faults)
    wanted: dict[str, list[str]] = {}
    for fault in listed:
        if fault.file is not None and fault.line is None and fault.file.endswith(".toml"):
            wanted.setdefault(fault.file, []).append(fault.key or "")
    found = {file: _lines_in(Path(file), keys) for file, keys in wanted.items()}
    return [
        attrs.evolve(fault, line=fault.line or found.get(fault.file or "", {}).get(fault.key or ""))
        for fault in listed
    ]


def _lines_in(file: Path, keys: Sequence[str]) -> dict[str, int]:
    try:
        data = read_at_most(file, _MAX_SEARCHED + 1)
    except OSError:
        return {}
    return lines_of(data, keys)


def lines_of(data: bytes, keys: Sequence[str]) -> dict[str, int]:
    """Key -> its 1-based line, else that of the nearest table above it that is there, else 1.

    In a text that is no TOML it is the line on which reading stops.

    Args:
        data: The file.
        keys: Dotted, with indices as in ``override[1].expires``.
    """
    if len(data) > _MAX_SEARCHED:
        return dict.fromkeys(keys, 1)
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        return dict.fromkeys(keys, data.count(b"\n", 0, error.start) + 1)
    try:
        whole = read_toml(text.encode())
    except TomlError as error:
        found = re.search(r"\bline (\d+)", str(error))
        line = int(found[1]) if found else max(1, len(text.splitlines()))
        return dict.fromkeys(keys, line)
    paths = {key: _path(key, whole) for key in keys}
    lines = text.split("\n")  # only a newline ends a line of TOML; str.splitlines knows more
    found_at = _first(lines, [path for path in paths.values() if path])
    return {key: found_at.get(path, 1) for key, path in paths.items()}


#: The keys and indices that lead to a value.
_Path = tuple[str | int, ...]


def _path(key: str, table: dict[str, Any]) -> _Path:
    """The longest part of a dotted key that a table has."""
    path: list[str | int] = [
        int(part[1:-1]) if part.startswith("[") else part
        for part in re.findall(r"\[\d{1,9}\]|[^.\[\]]+", key)
    ]
    while path and not _holds(table, path):
        path.pop()
    return tuple(path)


def _first(lines: list[str], paths: Iterable[_Path]) -> dict[_Path, int]:
    """Path -> the line on which the statement begins that sets it, of those that are found soon."""
    left, found = set(paths), dict[_Path, int]()
    before = 0  # lines of the longest text so far that is whole
    read = size = 0
    for count in range(1, len(lines) + 1 if len(lines) <= _MAX_LINES else 0):
        size += len(lines[count - 1]) + 1
        read += size
        if not left or read > _MAX_READ_AGAIN:
            break
        try:
            table = tomllib.loads("\n".join(lines[:count]))
        except ValueError:
            continue  # in the middle of a value that goes over several lines
        for path in [path for path in left if _holds(table, path)]:
            found[path] = before + 1
            left.remove(path)
        before = count
    return found


def _holds(table: Any, path: Sequence[str | int]) -> bool:
    """Whether a table has a value at ``path``."""
    for part in path:
        if isinstance(part, int):
            if not isinstance(table, list) or len(table) <= part:
                return False
        elif not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return True
