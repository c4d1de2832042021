"""JSON in two fixed forms: the one that digests are taken over, and the one that files have."""

import hashlib
import json
import math
from typing import Any


def json_digest(value: Any) -> str:
    """SHA-256, in hexadecimal digits, of a JSON value in canonical form.

    Canonical is: keys sorted, no white space, text not escaped, UTF-8. The same value has the same
    digest whatever the order of its keys.

    Raises:
        TypeError: It is no JSON value.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def finite(number: float) -> float | None:
    """A number as documents have it: None for infinity and for NaN, which JSON has no words for."""
    return number if math.isfinite(number) else None


def json_text(value: Any, *, sort_keys: bool = True, escaped: bool = False) -> str:
    """A JSON value as files and outputs have it: indented by two, ending in a newline.

    Args:
        value: The value.
        sort_keys: Whether keys are sorted; else they stay in the order of the value.
        escaped: Whether the text is ASCII alone, the rest as escapes of JSON.

    Raises:
        TypeError: It is no JSON value.
    """
    return json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=escaped) + "\n"
