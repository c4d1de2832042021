"""Receipts, acceptances, proofs and graduations."""

from megatron_seams.errors.base import SeamsError


class RecordError(SeamsError):
    """A record of a plan that cannot be read, or that differs from what is here."""


class ReceiptUnreadable(RecordError):
    """A receipt that is not one, of another schema, or whose bytes were edited."""

    code = "SEAM-V01"


class ReceiptDiffers(RecordError):
    """One difference between a receipt and the environment that it is held against."""

    code = "SEAM-V02"


class AcceptanceInvalid(RecordError):
    """An acceptance without a reason, or of a receipt that cannot be written."""

    code = "SEAM-V03"


class ProofUnreadable(RecordError):
    """A folder that is no proof of a smoke run, or one of whose files is not as it was written."""

    code = "SEAM-G01"


class NotGraduated(RecordError):
    """A seam whose layers this Megatron does not all build natively, or that built none."""

    code = "SEAM-G02"


class CheckpointDiffers(RecordError):
    """A key of the seam's checkpoint that the native model does not have, or the other way."""

    code = "SEAM-G03"


class NumbersDiffer(RecordError):
    """A native model that computes other numbers from the seam's checkpoint."""

    code = "SEAM-G04"
