"""A recipe's choices between providers: experiments, pins, an allowlist, overrides, reasons."""

import datetime
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import attrs
from attrs import field

from megatron_seams.base.validators import sentence, visible_sentence


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
class Justification:
    """``[[justify]]``: why a seam stands where native Megatron does not.

    Attributes:
        seam: The seam's name.
        reason: The reason, in a sentence.
        review_by: By this day the reason is given anew, or ``registry check`` fails.
    """

    seam: str = field(validator=sentence)
    reason: str = field(validator=visible_sentence)
    review_by: datetime.date

    @property
    def line(self) -> str:
        """The date and the reason, as one line of text."""
        return f"justified until {self.review_by}: {self.reason_line}"

    @property
    def reason_line(self) -> str:
        """The reason, which may have several lines, as one."""
        return " ".join(self.reason.split())


def one_reason_each(_: Any, __: Any, value: tuple[Justification, ...] | None) -> None:
    """Hold ``[[justify]]`` to one entry for each seam."""
    named = Counter(entry.seam for entry in value or ())
    twice = sorted(name for name, count in named.items() if count > 1)
    if twice:
        message = f"expected one entry for each seam, found more for {', '.join(twice)}"
        raise ValueError(message)


@attrs.frozen(kw_only=True)
class Preferences:
    """Everything that decides between providers; an audit, which has no recipe, uses the default.

    Attributes:
        policy: Experiments, pins and the allowlist.
        overrides: Seams taken over native.
        configured: Names of the seams for which the recipe has options.
        install: Family -> the distribution to install where nothing builds it.
    """

    policy: Policy = field(factory=Policy)
    overrides: tuple[Override, ...] = ()
    configured: Collection[str] = ()
    install: Mapping[str, str] = field(factory=dict)

    def accepts(self, experiment: str) -> bool:
        """Whether the recipe names an experiment: among those it accepts, its pins or overrides."""
        return (
            experiment in self.policy.experiments
            or experiment in self.policy.pin.values()
            or any(entry.seam == experiment for entry in self.overrides)
        )
