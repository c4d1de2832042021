"""Faults of patterns and recipes, and of the arguments that a plan is printed as."""

from megatron_seams.errors.base import SeamsError


class RecipeError(SeamsError):
    """A pattern, a recipe, or a setting in one, that is invalid as it is written."""


class PatternSyntax(RecipeError):
    """The pattern cannot be read: it is empty, or its stages, depth or MTP parts do not fit."""

    code = "SEAM-P01"


class UnknownToken(RecipeError):
    """A token that the dialect does not have. It is never taken for the nearest one."""

    code = "SEAM-P02"


class AmbiguousToken(RecipeError):
    """A token whose meaning differs between published tables."""

    code = "SEAM-P03"


class DialectInvalid(RecipeError):
    """No such dialect, or a dialect entry that contradicts the dialect it extends."""

    code = "SEAM-P04"


class RecipeInvalid(RecipeError):
    """A recipe that cannot be read, or a key in it with a wrong name, type or value."""

    code = "SEAM-C01"


class SpecialisationInvalid(RecipeError):
    """A ``[families]`` or ``[[layers]]`` entry that fits no layer, or contradicts another."""

    code = "SEAM-C02"


class UnusedSetting(RecipeError):
    """A recipe setting (seam options, pin, experiment, override) that nothing in the plan reads."""

    code = "SEAM-C03"


class UnknownNativeKey(RecipeError):
    """A key of ``[megatron]`` that the configuration of this Megatron does not have."""

    code = "SEAM-C04"


class NoArgument(RecipeError):
    """A part of a plan that no flag of this Megatron's command line expresses."""

    code = "SEAM-A01"


class UsageInvalid(RecipeError):
    """A command line with an option, a value or a path that its command cannot use."""

    code = "SEAM-A02"
