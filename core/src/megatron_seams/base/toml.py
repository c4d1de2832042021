"""Reading TOML, and finding the line on which a key is set.

No TOML reader for Python gives positions. The standard library's finds them all the same: a key is
set by the statement at whose end the text so far holds it for the first time.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

import attrs

from megatron_seams.base.files import read_at_most
from megatron_seams.errors import SeamsError

#: A file with more lines is searched no further: each line costs a reading of those before it.
_MAX_LINES = 400
_MAX_BYTES = 64 * 1024


class TomlError(ValueError):
    """A file that cannot be read, or a text that is no TOML; its message says why."""


def read_toml(source: Path | bytes) -> dict[str, Any]:
    """The table that a TOML file, or the bytes of one, spells.

    Raises:
        TomlError: The file cannot be read, is not UTF-8, or is no TOML.
    """
    try:
        if isinstance(source, Path):
            return tomllib.loads(source.read_text(encoding="utf-8"))
        return tomllib.loads(source.decode("utf-8"))
    except RecursionError as error:
        message = "its arrays or tables are nested too deeply"
        raise TomlError(message) from error
    except (OSError, ValueError) as error:  # the limit on the digits of an integer is a ValueError
        raise TomlError(str(error)) from error


def with_line(fault: SeamsError) -> SeamsError:
    """``fault`` with the line of its key, where it names a TOML file that can be read."""
    if fault.file is None or fault.line is not None or not fault.file.endswith(".toml"):
        return fault
    try:
        data = read_at_most(Path(fault.file), _MAX_BYTES + 1)
    except OSError:
        return fault
    return attrs.evolve(fault, line=line_of(data, fault.key or ""))


def line_of(data: bytes, key: str) -> int:
    """The 1-based line of ``key``, else of the nearest table above it that is there, else 1.

    In a text that is no TOML it is the line on which reading stops.

    Args:
        data: The file.
        key: Dotted, with indices as in ``override[1].expires``.
    """
    if len(data) > _MAX_BYTES:
        return 1
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1
    try:
        whole = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        found = re.search(r"\bline (\d+)", str(error))
        return int(found[1]) if found else max(1, len(text.splitlines()))
    path: list[str | int] = [
        int(part[1:-1]) if part.startswith("[") else part
        for part in re.findall(r"\[\d+\]|[^.\[\]]+", key)
    ]
    while path and not _holds(whole, path):
        path.pop()
    # Only a newline ends a line of TOML; str.splitlines knows more.
    lines = text.split("\n")
    return _first(lines, path) if path and len(lines) <= _MAX_LINES else 1


def _first(lines: list[str], path: list[str | int]) -> int:
    """The line on which the statement begins that sets ``path``."""
    before = 0  # lines of the longest text so far that is whole and does not hold the key
    for count in range(1, len(lines) + 1):
        try:
            table = tomllib.loads("\n".join(lines[:count]))
        except ValueError:
            continue  # in the middle of a value that goes over several lines
        if _holds(table, path):
            return before + 1
        before = count
    return 1


def _holds(table: Any, path: list[str | int]) -> bool:
    """Whether a table has a value at ``path``."""
    for part in path:
        if isinstance(part, int):
            if not isinstance(table, list) or len(table) <= part:
                return False
        elif not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return True
