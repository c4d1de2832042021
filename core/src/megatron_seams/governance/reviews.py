"""Review dates: the day by which a seam's owner says again why it is still here."""

import datetime
from typing import Final

from megatron_seams.errors import ReviewDue
from megatron_seams.seams.manifest import MANIFEST
from megatron_seams.seams.seam import Seam

#: A review date this near is a finding.
NOTICE: Final = datetime.timedelta(days=60)


def how_far(day: datetime.date, today: datetime.date) -> str:
    """How long ago a day was, or how far off it is, in words."""
    left = (day - today).days
    if left == 0:
        return "it is today"
    days = "day" if abs(left) == 1 else "days"
    return f"it passed {-left} {days} ago" if left < 0 else f"it is in {left} {days}"


def review_due(seam: Seam, today: datetime.date) -> ReviewDue | None:
    """The finding that a seam's review date has passed or is near; None if it is further off."""
    by = seam.manifest.seam.review_by
    if by - today > NOTICE:
        return None
    tracked = ", ".join(it.text for it in seam.manifest.upstream.references)
    again = f"which were {tracked}" if tracked else "of which there was none"
    return ReviewDue(
        asked=f"a review of {seam.claim} by {by}",
        found=how_far(by, today),
        next=f"{seam.owner} looks for upstream's changes again ({again}) and corrects [upstream] "
        "tracking, then says why the seam is still here by a later [seam] review-by, or deletes it",
        subject=seam.name,
        file=str(seam.directory / MANIFEST),
        key="seam.review-by",
    )
