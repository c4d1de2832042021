"""Faults of what is declared: manifests, owners, the workspace."""

from megatron_seams.errors.base import SeamsError


class ManifestError(SeamsError):
    """A seam, its owner or its workspace declares what is missing, wrong or out of date."""


class EntryPointInvalid(ManifestError):
    """An entry point that does not name a package, or whose name is not the seam's own; a record of
    a distribution that cannot be read, or hides the one that has the seam.
    """

    code = "SEAM-D01"


class ManifestMissing(ManifestError):
    """An installed entry point whose package or ``seam.toml`` cannot be found."""

    code = "SEAM-D02"


class ManifestUnreadable(ManifestError):
    """A ``seam.toml`` that is not UTF-8, not TOML, too large, no regular file, or outside its own
    package; or a seam whose files make every reader fail.
    """

    code = "SEAM-D03"


class ManifestInvalid(ManifestError):
    """A ``seam.toml`` with an unknown key, a missing key, or a value of the wrong type."""

    code = "SEAM-D04"


class Shadowed(ManifestError):
    """A package that Python would import from elsewhere than the distribution that claims it."""

    code = "SEAM-D05"


class DuplicateName(ManifestError):
    """Two distributions claim one seam name."""

    code = "SEAM-D06"


class FamilyConflict(ManifestError):
    """Two seams introduce one family with different meanings, or one that is already known."""

    code = "SEAM-D07"


class WrongMegatron(ManifestError):
    """A seam that does not support this Megatron."""

    code = "SEAM-D08"


class Superseded(ManifestError):
    """A seam whose block this Megatron builds by itself: the seam is to be deleted."""

    code = "SEAM-D09"


class ClaimDiffers(ManifestError):
    """A manifest's statement about upstream that is not true of this Megatron."""

    code = "SEAM-D10"


class WorkspaceInvalid(ManifestError):
    """A ``[tool.megatron-seams]`` table with a wrong key or value, or one that is not true here."""

    code = "SEAM-W01"


class OwnerMissing(ManifestError):
    """A seam with files that CODEOWNERS gives to nobody."""

    code = "SEAM-O01"


class OwnerShadowed(ManifestError):
    """A seam whose owner has a line in CODEOWNERS for its files, which a later line overrules."""

    code = "SEAM-O02"


class OwnerDiffers(ManifestError):
    """A seam whose files CODEOWNERS gives to others than the owner in its manifest."""

    code = "SEAM-O03"


class OwnedElsewhere(ManifestError):
    """A seam whose source is not in the tree that CODEOWNERS covers."""

    code = "SEAM-O04"


class CodeownersInvalid(ManifestError):
    """No CODEOWNERS, one that cannot be read, or a line in it that GitHub skips."""

    code = "SEAM-O05"


class NothingChecked(ManifestError):
    """A gate that found no seam, no recipe and no receipt, so that it proves nothing."""

    code = "SEAM-W02"


class Unwritten(ManifestError):
    """A text of a manifest that is still the scaffold's *To be written*."""

    code = "SEAM-D11"


class ReviewDue(ManifestError):
    """A seam whose review date has passed, or will within 60 days."""

    code = "SEAM-O06"


class Unjustified(ManifestError):
    """An experiment that a recipe uses without a reason, or a reason whose date is past or near."""

    code = "SEAM-O07"
