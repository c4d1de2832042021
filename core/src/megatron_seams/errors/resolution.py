"""Faults of resolution: a family without a single provider, or a layout that is not accepted."""

from megatron_seams.errors.base import SeamsError


class ResolutionError(SeamsError):
    """A layer or feature without exactly one provider, or a layout that is refused."""


class NoProvider(ResolutionError):
    """Neither Megatron nor any installed seam builds the family."""

    code = "SEAM-R01"


class TwoSeams(ResolutionError):
    """Two or more seams build the family and nothing chooses between them."""

    code = "SEAM-R02"


class NativeContested(ResolutionError):
    """Megatron now builds a family whose seam accepts no upstream equivalent."""

    code = "SEAM-R03"


class OnlyBroken(ResolutionError):
    """Every seam for the family is broken, or the seam that the recipe pins is broken."""

    code = "SEAM-R04"


class ExperimentNotNamed(ResolutionError):
    """The only seam for the family is an experiment and the recipe does not name it."""

    code = "SEAM-R05"


class Unsupported(ResolutionError):
    """A parallelism or runtime setting that a chosen seam does not declare under [supports]."""

    code = "SEAM-R06"


class OverrideInvalid(ResolutionError):
    """An override that has expired, or that names a seam which cannot be chosen."""

    code = "SEAM-R07"


class UpstreamForbids(ResolutionError):
    """A combination of blocks, or a stage layout, that Megatron itself does not accept."""

    code = "SEAM-R08"


class NoCarrier(ResolutionError):
    """No native slot can carry the seam's layers in this pattern."""

    code = "SEAM-R09"


class SeamInMtp(ResolutionError):
    """A seam's layer inside an MTP suffix, where upstream builds layers from native parts only."""

    code = "SEAM-R10"


class FeatureInvalid(ResolutionError):
    """A feature that cannot be attached where the recipe asks for it."""

    code = "SEAM-R11"


class NativeOption(ResolutionError):
    """Megatron has the family as a configuration option, which no token of a pattern can spell."""

    code = "SEAM-R12"


class NotAllowed(ResolutionError):
    """An installed seam that would be chosen, were it not left out of the allowlist."""

    code = "SEAM-R13"
