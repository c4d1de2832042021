"""Values of records: whether two are the same, and how a message shows one."""

import json
from typing import Any


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are spelled alike: to Python 1 and 1.0 and true are equal."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def shown(value: Any) -> str:
    """A JSON value in a message: text as it is, and ``nothing`` for null."""
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
