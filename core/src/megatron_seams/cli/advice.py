"""Advice: the command to type for what a fault's ``next`` says.

The library's faults are true without a shell, and so name no command; the command line adds it.
"""

from collections.abc import Mapping
from typing import Final

from megatron_seams import errors
from megatron_seams.errors import SeamsError

#: Cause -> what to type, or the page to read.
ADVICE: Final[Mapping[type[SeamsError], str]] = {
    errors.UnknownToken: "see: registry resolve PATTERN --dialect NAME",
    errors.RecipeInvalid: "see: registry docs recipes",
    errors.EntryPointInvalid: "see: registry docs write-a-seam",
    errors.ManifestInvalid: "see: registry docs manifest",
    errors.Superseded: "see: registry docs delete-a-seam",
    errors.ReviewDue: "see: registry docs delete-a-seam",
    errors.WorkspaceInvalid: "see: registry docs check",
    errors.CodeownersInvalid: "see: registry check --codeowners FILE",
    errors.MegatronMissing: "see: --megatron WHEEL|PATH",
    errors.SymbolUnmapped: "see: registry docs write-a-seam",
    errors.SurfaceUnknown: "see: registry surface WHEEL|PATH",
    errors.NoProvider: "see: registry docs write-a-seam",
    errors.OnlyBroken: "see: registry list",
    errors.HookMissing: "see: registry docs write-a-seam",
    errors.DataInvalid: "see: registry smoke RECIPE --data FILE",
    errors.LaunchInvalid: "see: registry args RECIPE --receipt FILE",
    errors.ReceiptUnreadable: "see: registry resolve RECIPE --receipt FILE --replace",
    errors.ReceiptKept: "see: registry accept FILE --recipe RECIPE --reason TEXT, or --replace",
    errors.ReceiptDiffers: "see: registry accept RECEIPT --reason TEXT",
    errors.ProofUnreadable: "see: registry smoke RECIPE --save DIR",
    errors.NotGraduated: "see: registry smoke RECIPE --save DIR",
}


def advice_on(fault: SeamsError) -> str:
    """The last line of a fault's message; empty where its ``next`` needs no command."""
    if isinstance(fault, errors.UsageInvalid):
        return f"see: {fault.subject} --help" if fault.subject.startswith("registry") else ""
    if isinstance(fault, errors.ReceiptDiffers) and (fault.key or "").startswith("recipe."):
        return "see: registry accept RECEIPT --recipe RECIPE --reason TEXT"
    if isinstance(fault, errors.NoArgument) and "a Megatron with its trainer" in fault.next:
        return "see: registry args RECIPE --megatron CHECKOUT"
    if isinstance(fault, errors.UnknownToken) and not fault.positions:
        return "see: registry list"
    return ADVICE.get(type(fault), "")
