"""A rank's statement: the digest of its receipt and the fields behind it, or its error."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from megatron_seams.base.canonical_json import json_digest
from megatron_seams.errors import Refusal, SeamsError

#: The longest text of an error that is published, in characters: where each of 16,384 ranks has
#: one of its own, the store keeps them all.
_LONGEST: Final = 4000


@attrs.frozen(kw_only=True)
class Statement:
    """The word of one rank.

    Attributes:
        fields: Dotted name -> JSON value of what the rank runs; empty for an error.
        error: Why it has nothing to run; empty if it has.
    """

    fields: Mapping[str, Any] = attrs.field(factory=dict)
    error: str = ""

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> "Statement":
        """The statement of a rank that has a plan, with that description of it."""
        return cls(fields=dict(_flat("", description)))

    @classmethod
    def of_error(cls, error: BaseException) -> "Statement":
        """The statement of a rank that has none."""
        known = isinstance(error, SeamsError | Refusal)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        return cls(error=text[:_LONGEST] or type(error).__name__)

    @property
    def digest(self) -> str:
        """SHA-256 of the statement; ranks that say the same have the same."""
        return json_digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The statement as JSON values."""
        return {"fields": dict(self.fields), "error": self.error}


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A JSON value field by field: tables by key, lists of tables by number from 1."""
    parts: Iterator[tuple[str, Any]] | None = None
    if isinstance(value, Mapping) and value:
        parts = ((str(key), part) for key, part in value.items())
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        parts = ((str(number), part) for number, part in enumerate(value, start=1))
    if parts is None:
        yield path, value
        return
    for key, part in parts:
        yield from _flat(f"{path}.{key}" if path else key, part)
