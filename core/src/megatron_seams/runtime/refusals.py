"""The refusal of what a seam's manifest does not claim, in the words of every seam."""

import attrs

from megatron_seams.errors import Unsupported


@attrs.frozen(kw_only=True)
class Refusals:
    """Makes a seam's refusals.

    Attributes:
        seam: The seam's name.
        owner: The team that a refusal sends its reader to.
    """

    seam: str
    owner: str

    def unsupported(self, capability: str, *, found: str, then: str) -> Unsupported:
        """Refuse what the manifest does not claim.

        Args:
            capability: The manifest's word, or what is left out of it.
            found: What was met.
            then: What to change.
        """
        return Unsupported(
            asked=f"{capability} with seam {self.seam!r}, whose manifest does not say that it "
            "supports it",
            found=found,
            next=f"{then}, or ask {self.owner} for {capability}",
            subject=self.seam,
        )
