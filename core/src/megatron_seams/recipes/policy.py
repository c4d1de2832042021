"""What a recipe says of who builds its families; said of none, it is what an audit goes by."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field

if TYPE_CHECKING:
    from megatron_seams.recipes.recipe import Override


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


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Preferences:
    """The preferences of no recipe: none; a :class:`Recipe` has the same."""

    policy: Policy = field(factory=Policy)
    override: "tuple[Override, ...]" = ()
    seams: Mapping[str, Any] = field(factory=dict)
    install: Mapping[str, str] = field(factory=dict)
