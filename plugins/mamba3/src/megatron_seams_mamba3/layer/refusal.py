"""The refusal of what the manifest does not claim."""

from megatron_seams.errors import Unsupported


def unsupported(capability: str, found: str, then: str) -> Unsupported:
    """Make the refusal.

    Args:
        capability: The manifest's word, or what is left out of it.
        found: What was met.
        then: What to change.
    """
    return Unsupported(
        asked=f"{capability} with seam 'mamba3', whose manifest does not say that it supports it",
        found=found,
        next=f"{then}, or ask @megatron-seams/recurrent for {capability}",
        subject="mamba3",
    )
