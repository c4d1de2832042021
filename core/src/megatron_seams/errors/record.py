"""Receipts, acceptances, proofs and graduations."""

from megatron_seams.errors.base import SeamsError


class RecordError(SeamsError):
    """A record of a plan that cannot be read, or that differs from what is here."""


class ReceiptUnreadable(RecordError):
    """A file that is no receipt, a receipt of another schema, or one that was edited."""

    code = "SEAM-V01"


class ReceiptDiffers(RecordError):
    """One difference between a receipt and the environment that it is compared with."""

    code = "SEAM-V02"


class AcceptanceInvalid(RecordError):
    """An acceptance without a reason, or one whose receipt cannot be written."""

    code = "SEAM-V03"


class ReceiptKept(RecordError):
    """A file that a new receipt would overwrite: no receipt, another's, or one with acceptances."""

    code = "SEAM-V04"


class CheckpointHeld(RecordError):
    """A checkpoint whose receipt is that of another model than the run's; nothing was loaded."""

    code = "SEAM-V05"


class ProofUnreadable(RecordError):
    """A folder that is no proof of a smoke run, or a proof with a file that was changed since."""

    code = "SEAM-G01"


class NotGraduated(RecordError):
    """A seam that built no layer of the proof, or whose layers this Megatron does not build."""

    code = "SEAM-G02"


class CheckpointDiffers(RecordError):
    """A checkpoint key that only the seam's model or only the native model has."""

    code = "SEAM-G03"


class NumbersDiffer(RecordError):
    """A native model that computes other numbers than the seam did from the same checkpoint."""

    code = "SEAM-G04"
