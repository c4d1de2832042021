"""Every way things can go wrong: one class for each cause, with a stable code.

The classes are exceptions *and* values. A fault that must stop the caller is raised; a fault that
must not hide the next one is collected, and listed with the others (a *finding*) or raised together
with them in one :class:`Refusal`.
"""

from collections.abc import Iterable

from megatron_seams.fault import ExitCode as ExitCode
from megatron_seams.fault import SeamsError as SeamsError

# --- patterns and recipes -------------------------------------------------------------------


class PatternSyntax(SeamsError):
    """The pattern cannot be read: it is empty, or its stages, depth or MTP parts do not fit."""

    code = "SEAM-P01"


class UnknownToken(SeamsError):
    """A token that the dialect does not have. It is never taken for the nearest one."""

    code = "SEAM-P02"


class AmbiguousToken(SeamsError):
    """A token whose meaning differs between published tables."""

    code = "SEAM-P03"


class DialectInvalid(SeamsError):
    """No such dialect, or a dialect entry that contradicts the dialect it extends."""

    code = "SEAM-P04"


class RecipeInvalid(SeamsError):
    """A recipe that cannot be read, or a key in it with a wrong name, type or value."""

    code = "SEAM-C01"


class SpecialisationInvalid(SeamsError):
    """A ``[families]`` or ``[[layers]]`` entry that fits no layer, or contradicts another."""

    code = "SEAM-C02"


class UnusedSetting(SeamsError):
    """A recipe setting (seam options, pin, experiment, override) that nothing in the plan reads."""

    code = "SEAM-C03"


class UnknownNativeKey(SeamsError):
    """A key of ``[megatron]`` that the configuration of this Megatron does not have."""

    code = "SEAM-C04"


# --- manifests and discovery ------------------------------------------------------------------


class EntryPointInvalid(SeamsError):
    """An entry point that does not name a package, or names it other than its seam is named."""

    code = "SEAM-D01"


class ManifestMissing(SeamsError):
    """An installed entry point whose package or ``seam.toml`` cannot be found."""

    code = "SEAM-D02"


class ManifestUnreadable(SeamsError):
    """A ``seam.toml`` that is not UTF-8, not TOML, too large, or outside its own package."""

    code = "SEAM-D03"


class ManifestInvalid(SeamsError):
    """A ``seam.toml`` with an unknown key, a missing key, or a value of the wrong type."""

    code = "SEAM-D04"


class Shadowed(SeamsError):
    """A package that would be imported from elsewhere than the distribution that claims it."""

    code = "SEAM-D05"


class DuplicateName(SeamsError):
    """Two distributions claim one seam name."""

    code = "SEAM-D06"


class FamilyConflict(SeamsError):
    """Two seams introduce one family with different meanings, or one that is already known."""

    code = "SEAM-D07"


class WrongMegatron(SeamsError):
    """A seam that does not support the Megatron in hand."""

    code = "SEAM-D08"


class Superseded(SeamsError):
    """A seam whose block the Megatron in hand builds by itself: it is to be deleted."""

    code = "SEAM-D09"


class ClaimDiffers(SeamsError):
    """A manifest that says otherwise of upstream than the Megatron in hand shows."""

    code = "SEAM-D10"


class WorkspaceInvalid(SeamsError):
    """A workspace's ``[tool.megatron-seams]`` with a wrong key or value, or that does not hold."""

    code = "SEAM-W01"


# --- ownership --------------------------------------------------------------------------------


class OwnerMissing(SeamsError):
    """A seam with files that CODEOWNERS gives to nobody."""

    code = "SEAM-O01"


class OwnerShadowed(SeamsError):
    """A seam whose owner is named for its files, by a line that a later one overrules."""

    code = "SEAM-O02"


class OwnerDiffers(SeamsError):
    """A seam whose files CODEOWNERS gives to others than the owner in its manifest."""

    code = "SEAM-O03"


class OwnedElsewhere(SeamsError):
    """A seam whose source is not in the tree that CODEOWNERS speaks of."""

    code = "SEAM-O04"


class CodeownersInvalid(SeamsError):
    """No CODEOWNERS, one that cannot be read, or a line in it that GitHub skips."""

    code = "SEAM-O05"


class ReviewDue(SeamsError):
    """A seam whose review date has passed, or will within 60 days."""

    code = "SEAM-O06"


# --- the native surface -----------------------------------------------------------------------


class MegatronMissing(SeamsError):
    """No Megatron-Core can be imported from here: nothing is native."""

    code = "SEAM-S01"
    exit_code = ExitCode.ENVIRONMENT


class SurfaceUnknown(SeamsError):
    """A Megatron source of a shape that the reader does not know: nothing is native."""

    code = "SEAM-S02"
    exit_code = ExitCode.ENVIRONMENT


class MegatronDiffers(SeamsError):
    """The Megatron that would be imported is not the installed distribution."""

    code = "SEAM-S03"


class SymbolUnmapped(SeamsError):
    """An upstream symbol for which no family is known. It is reported and never guessed."""

    code = "SEAM-S04"


# --- resolution -------------------------------------------------------------------------------


class NoProvider(SeamsError):
    """Neither Megatron nor any installed seam builds the family."""

    code = "SEAM-R01"


class TwoSeams(SeamsError):
    """Two or more seams build the family and nothing chooses between them."""

    code = "SEAM-R02"


class NativeContested(SeamsError):
    """Megatron now builds a family whose seam accepts no upstream equivalent."""

    code = "SEAM-R03"


class OnlyBroken(SeamsError):
    """The only seams for the family are broken, or the one that the recipe pins is."""

    code = "SEAM-R04"


class ExperimentNotNamed(SeamsError):
    """The only seam for the family is an experiment and the recipe does not name it."""

    code = "SEAM-R05"


class Unsupported(SeamsError):
    """A parallelism or runtime setting that a chosen seam does not say it supports."""

    code = "SEAM-R06"


class OverrideInvalid(SeamsError):
    """An override that has expired, or that names a seam which cannot be chosen."""

    code = "SEAM-R07"


class UpstreamForbids(SeamsError):
    """A combination of blocks, or a stage layout, that Megatron itself does not accept."""

    code = "SEAM-R08"


class NoCarrier(SeamsError):
    """No native slot can carry the seam's layers in this pattern."""

    code = "SEAM-R09"


class SeamInMtp(SeamsError):
    """A seam's layer inside an MTP suffix, where upstream builds layers from native parts only."""

    code = "SEAM-R10"


class FeatureInvalid(SeamsError):
    """A feature that cannot be placed where the recipe wants it."""

    code = "SEAM-R11"


class NativeOption(SeamsError):
    """Megatron ships the family as an option, which no token of a pattern can spell."""

    code = "SEAM-R12"


class NotAllowed(SeamsError):
    """An installed seam that the allowlist leaves out, where it would be taken."""

    code = "SEAM-R13"


# --- building ---------------------------------------------------------------------------------


class PluginImport(SeamsError):
    """A chosen seam's ``plugin`` module cannot be imported."""

    code = "SEAM-B01"


class HookUndeclared(SeamsError):
    """A plugin implements a hook that its manifest does not declare."""

    code = "SEAM-B02"


class HookMissing(SeamsError):
    """A plugin lacks the hook that its manifest declares, or returns something else from it."""

    code = "SEAM-B03"


class OptionsInvalid(SeamsError):
    """Seam options that the seam's own class does not accept."""

    code = "SEAM-B04"


class CannotRunHere(SeamsError):
    """A plan that is fine, on a machine that cannot run it."""

    code = "SEAM-B05"


class RuntimeMissing(SeamsError):
    """The runtime's own requirements (torch, megatron-core) cannot be imported."""

    code = "SEAM-B06"
    exit_code = ExitCode.ENVIRONMENT


class SettingsInvalid(SeamsError):
    """Megatron's own configuration class does not accept the recipe's settings."""

    code = "SEAM-B07"


class DataInvalid(SeamsError):
    """A text that the smoke run cannot learn from."""

    code = "SEAM-B08"


class LaunchInvalid(SeamsError):
    """A run under upstream's trainer without a receipt, or with other layers than its receipt."""

    code = "SEAM-B09"


# --- receipts ---------------------------------------------------------------------------------


class ReceiptUnreadable(SeamsError):
    """A receipt that is not one, of another schema, or whose bytes were edited."""

    code = "SEAM-V01"


class ReceiptDiffers(SeamsError):
    """One difference between a receipt and the environment that it is held against."""

    code = "SEAM-V02"


class AcceptanceInvalid(SeamsError):
    """An acceptance without a reason, or of a receipt that cannot be written."""

    code = "SEAM-V03"


# --- arguments --------------------------------------------------------------------------------


class NoArgument(SeamsError):
    """A part of a plan that no flag of this Megatron's command line says."""

    code = "SEAM-A01"


# --- graduation -------------------------------------------------------------------------------


class ProofUnreadable(SeamsError):
    """A folder that is no proof of a smoke run, or one of whose files is not as it was written."""

    code = "SEAM-G01"


class NotGraduated(SeamsError):
    """A seam whose layers this Megatron does not all build natively, or that built none."""

    code = "SEAM-G02"


class CheckpointDiffers(SeamsError):
    """A key of the seam's checkpoint that the native model does not have, or the other way."""

    code = "SEAM-G03"


class NumbersDiffer(SeamsError):
    """A native model that computes other numbers from the seam's checkpoint."""

    code = "SEAM-G04"


class Refusal(Exception):
    """A plan that could not be made, with every reason at once.

    Attributes:
        reasons: The faults, in the order of the first layer that each concerns.
        findings: Faults that did not cause the refusal but belong beside it.
        tokens: The decoder's layers as the pattern spells them, where it could be read at all.
    """

    def __init__(
        self,
        reasons: Iterable[SeamsError],
        findings: Iterable[SeamsError] = (),
        *,
        tokens: str = "",
    ) -> None:
        self.reasons = tuple(dict.fromkeys(reasons))
        self.findings = tuple(f for f in dict.fromkeys(findings) if f not in self.reasons)
        self.tokens = tokens
        super().__init__(self.reasons, self.findings)

    @property
    def exit_code(self) -> ExitCode:
        """The gravest exit code among the reasons."""
        return max((reason.exit_code for reason in self.reasons), default=ExitCode.REFUSED)

    def __str__(self) -> str:
        """All reasons, one paragraph each."""
        return "\n".join(str(reason) for reason in self.reasons)


def causes() -> tuple[type[SeamsError], ...]:
    """All causes, ordered by code; the documentation's table is generated from this."""
    return tuple(sorted(SeamsError.__subclasses__(), key=lambda cause: cause.code))
