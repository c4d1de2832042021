"""What a recipe says of who builds its families; said of none, it is what an audit goes by."""

import datetime
from collections.abc import Mapping
from typing import Any

import attrs
from attrs import field

from megatron_seams.checks import sentence


@attrs.frozen(kw_only=True)
class Policy:
    """``[policy]``: choices between seams.

    Attributes:
        experiments: Names of experiments that this model accepts.
        pin: Family -> the seam to take where several build it.
        allow: The seams that this model may use; None allows every one.
    """

    experiments: tuple[str, ...] = ()
    pin: dict[str, str] = field(factory=dict)
    allow: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True)
class Override:
    """``[[override]]``: a seam taken over native, for a reason and until a date."""

    family: str
    seam: str
    reason: str = field(validator=sentence)
    expires: datetime.date


@attrs.frozen(kw_only=True)
class Preferences:
    """The preferences of no recipe: none. A :class:`~megatron_seams.recipe.Recipe` has the same."""

    policy: Policy = field(factory=Policy)
    override: tuple[Override, ...] = ()
    seams: Mapping[str, Any] = field(factory=dict)
    install: Mapping[str, str] = field(factory=dict)
