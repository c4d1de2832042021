"""Faults of the Megatron that a plan is made against."""

from megatron_seams.errors.base import ExitCode, SeamsError


class UpstreamError(SeamsError):
    """A Megatron that is missing, unreadable, or unlike the installed distribution."""


class MegatronMissing(UpstreamError):
    """No Megatron-Core can be imported from here: nothing is native."""

    code = "SEAM-S01"
    exit_code = ExitCode.ENVIRONMENT


class SurfaceUnknown(UpstreamError):
    """A Megatron whose source the reader does not understand: nothing is native."""

    code = "SEAM-S02"
    exit_code = ExitCode.ENVIRONMENT


class MegatronDiffers(UpstreamError):
    """The Megatron that would be imported is not the installed distribution."""

    code = "SEAM-S03"


class SymbolUnmapped(UpstreamError):
    """An upstream symbol for which no family is known. It is reported and never guessed."""

    code = "SEAM-S04"
