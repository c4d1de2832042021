"""The values of a configuration: read by key, with their types checked and their use remembered."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from megatron_seams.errors import RecipeInvalid, SeamsError

#: Sizes are far below; a whole number above does not become a float.
_LARGEST = 2**63


class Values:
    """Reads one configuration's keys.

    A class with a memory: which keys have been read decides which are left to report, since a key
    that changes the model and that nothing reads must be named.

    Args:
        config: The configuration, or the part of it that describes the language model.
        file: Its file, for the messages.
    """

    def __init__(self, config: Mapping[str, Any], file: str) -> None:
        self._config = config
        self._file = file
        self._read: set[str] = set()
        self.faults: list[SeamsError] = []
        self._found: set[str] = set()  # what the faults say

    def value(self, *keys: str) -> Any:
        """The value of the first key that has one; None where none of them has. All are read."""
        self._read.update(keys)
        return next((v for key in keys if (v := self._config.get(key)) is not None), None)

    def has(self, *keys: str) -> bool:
        """Whether the configuration has one of the keys, be it without a value."""
        return any(key in self._config for key in keys)

    def key_of(self, *keys: str) -> str | None:
        """The first of these keys that has a value."""
        return next((key for key in keys if self._config.get(key) is not None), None)

    def whole(self, *keys: str) -> int | None:
        """A whole number, also where it is written as text or as a float."""
        found = self.value(*keys)
        if isinstance(found, str) and found.strip().isdecimal() and len(found) < 20:
            return int(found)
        if isinstance(found, float) and found.is_integer() and abs(found) < _LARGEST:
            return int(found)
        if found is None or _is_whole(found):
            return found
        self._wrong(keys, found, "a whole number")
        return None

    def number(self, *keys: str) -> int | float | None:
        """A number."""
        found = self.value(*keys)
        if found is None or isinstance(found, float) or _is_whole(found):
            return found
        self._wrong(keys, found, "a number")
        return None

    def flag(self, *keys: str) -> bool | None:
        """True or false."""
        found = self.value(*keys)
        if found is None or isinstance(found, bool):
            return found
        self._wrong(keys, found, "true or false")
        return None

    def text(self, *keys: str) -> str | None:
        """A text."""
        found = self.value(*keys)
        if found is None or isinstance(found, str):
            return found
        self._wrong(keys, found, "a text")
        return None

    def names(self, *keys: str) -> list[str] | None:
        """A list of texts."""
        found = self.value(*keys)
        if found is None:
            return None
        if isinstance(found, list) and all(isinstance(part, str) for part in found):
            return found
        self._wrong(keys, found, "a list of names")
        return None

    def wholes(self, *keys: str) -> list[int] | None:
        """A list of whole numbers."""
        found = self.value(*keys)
        if found is None:
            return None
        if isinstance(found, list) and all(_is_whole(part) for part in found):
            return found
        self._wrong(keys, found, "a list of whole numbers")
        return None

    def table(self, *keys: str) -> Mapping[str, Any]:
        """A table; an empty one where there is none."""
        found = self.value(*keys)
        return found if isinstance(found, dict) else {}

    def inside(self, table: Mapping[str, Any], key: str) -> int | float | None:
        """A number in a table of the configuration."""
        part = Values(table, self._file)
        found = part.number(key)
        self._add(part.faults)
        return found

    def leave(self, *keys: str) -> None:
        """Count the keys as not read: what they say is more than was taken."""
        self._read.difference_update(keys)

    def fault(self, found: str, *, key: str | None = None, advice: str = "") -> None:
        """Remember what is wrong with the configuration, once."""
        if found in self._found:
            return
        fault = RecipeInvalid(
            asked="a model that can be read",
            found=found,
            next=advice or "correct the configuration",
            file=self._file,
            key=key,
        )
        self._add([fault])

    def _add(self, faults: Iterable[SeamsError]) -> None:
        listed = list(faults)
        self.faults += listed
        self._found.update(fault.found for fault in listed)

    def unread(self) -> dict[str, Any]:
        """The keys that have a value and that nothing has read."""
        return {
            key: value
            for key, value in self._config.items()
            if key not in self._read and value is not None
        }

    def _wrong(self, keys: tuple[str, ...], found: Any, wanted: str) -> None:
        key = self.key_of(*keys)
        self.fault(f"{key} is {found!r:.60}, not {wanted}", key=key)


def _is_whole(value: Any) -> TypeGuard[int]:
    return type(value) is int and abs(value) < _LARGEST
