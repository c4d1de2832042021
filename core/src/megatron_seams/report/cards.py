"""Cards: a seam with its owner, its review date, and what retires it."""

import datetime
from collections.abc import Mapping, Sequence

import attrs

from megatron_seams.errors import SeamsError
from megatron_seams.governance.audit import Audit
from megatron_seams.governance.reviews import review_due
from megatron_seams.planning.environment import Environment
from megatron_seams.report.links import Link, papers_of
from megatron_seams.seams.manifest import CAPABILITIES, Manifest
from megatron_seams.seams.removal import how_to_remove
from megatron_seams.seams.seam import Seam


@attrs.frozen(kw_only=True)
class Card:
    """One seam, valid or broken.

    Attributes:
        name: Its name.
        state: Its state, as in ``registry list``.
        distribution: The distribution that provides it, with the version.
        manifest: Its manifest; None where that cannot be read.
        review: How far off its review date is, where it is near or past.
        overdue: Whether that date has passed.
        goes: How to remove it, where it is superseded.
        faults: Its faults.
        used_by: The models that use it, each with the number of its layers.
        papers: The papers that its summary names.
        owner_line: The line of CODEOWNERS that decides on its owner.
    """

    name: str
    state: str
    distribution: str
    manifest: Manifest | None
    review: str = ""
    overdue: bool = False
    goes: str = ""
    faults: tuple[SeamsError, ...] = ()
    used_by: tuple[tuple[Link, int], ...] = ()
    papers: tuple[Link, ...] = ()
    owner_line: Link | None = None

    @property
    def waits_for(self) -> str:
        """The upstream surface that retires the seam, in words."""
        if self.manifest is None:
            return ""
        upstream = self.manifest.upstream
        if not upstream.accepts:
            return "nothing upstream is accepted in its place"
        since = f", native since {upstream.native_since}" if upstream.native_since else ""
        return f"upstream's {upstream.accepts}{since}"

    @property
    def supports(self) -> tuple[str, ...]:
        """The capabilities that its manifest declares under ``[supports]``."""
        if self.manifest is None:
            return ()
        return tuple(name for name in CAPABILITIES if self.manifest.supports[name])


def cards_of(
    found: Audit,
    today: datetime.date,
    *,
    used_by: Mapping[str, Sequence[tuple[Link, int]]],
    owner_lines: Mapping[str, Link],
) -> tuple[Card, ...]:
    """A card for each installed seam, by name; broken and overdue ones first.

    Args:
        found: The audit.
        today: The day that decides which dates have passed.
        used_by: Seam name -> the models that use it, each with the number of its layers.
        owner_lines: Seam name -> the line of CODEOWNERS that decides on its owner.
    """
    environment = found.environment
    states = {row.seam.name: row.state for family in found.families for row in family.seams}
    cards = [
        attrs.evolve(
            _sound(seam, states[seam.name], environment, today),
            used_by=tuple(used_by.get(seam.name, ())),
            owner_line=owner_lines.get(seam.name),
        )
        for seam in environment.discovery.seams
    ]
    cards += [
        Card(
            name=seam.name,
            state="broken",
            distribution=f"{seam.distribution} {seam.version}",
            manifest=seam.manifest,
            faults=seam.faults,
        )
        for seam in environment.discovery.broken
    ]
    return tuple(sorted(cards, key=lambda card: (not (card.faults or card.overdue), card.name)))


def _sound(seam: Seam, state: str, environment: Environment, today: datetime.date) -> Card:
    due = review_due(seam, today)
    range_fault = environment.out_of_range(seam)
    retired = environment.superseded_by(seam) is not None
    return Card(
        name=seam.name,
        state=state,
        distribution=f"{seam.distribution} {seam.version}",
        manifest=seam.manifest,
        review=due.found if due else "",
        overdue=seam.manifest.seam.review_by < today,
        goes=how_to_remove(seam, environment.distributions) if retired else "",
        faults=(range_fault,) if range_fault else (),
        papers=papers_of(seam.manifest.seam.summary),
    )
