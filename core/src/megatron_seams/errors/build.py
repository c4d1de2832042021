"""Faults of building and running a plan."""

from megatron_seams.errors.base import ExitCode, SeamsError


class BuildError(SeamsError):
    """A plan that cannot be built, started or trained here."""


class PluginImport(BuildError):
    """A chosen seam's ``plugin`` module cannot be imported."""

    code = "SEAM-B01"


class HookUndeclared(BuildError):
    """A plugin implements a hook that its manifest does not declare."""

    code = "SEAM-B02"


class HookMissing(BuildError):
    """A plugin lacks the hook that its manifest declares, or returns something else from it."""

    code = "SEAM-B03"


class OptionsInvalid(BuildError):
    """Seam options that the seam's manifest or its own class does not accept."""

    code = "SEAM-B04"


class CannotRunHere(BuildError):
    """A valid plan, on a machine that cannot run it."""

    code = "SEAM-B05"


class RuntimeMissing(BuildError):
    """The runtime's own requirements (torch, megatron-core) cannot be imported."""

    code = "SEAM-B06"
    exit_code = ExitCode.ENVIRONMENT


class SettingsInvalid(BuildError):
    """Megatron's own configuration class does not accept the recipe's settings."""

    code = "SEAM-B07"


class DataInvalid(BuildError):
    """A text that the smoke run cannot train on."""

    code = "SEAM-B08"


class LaunchInvalid(BuildError):
    """A run under upstream's trainer without a receipt, or with other layers than its receipt."""

    code = "SEAM-B09"


class BuildDiffers(BuildError):
    """A built model that is not the plan: other layers, slots, numbers or MTP depths."""

    code = "SEAM-B10"


class RanksDiffer(BuildError):
    """Ranks that do not run the same, or of which some stay silent before the first step."""

    code = "SEAM-B11"
