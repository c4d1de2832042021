"""A refusal on its way through upstream's constructors."""

from typing import Final

from megatron_seams.errors import Refusal, SeamsError

#: What to do about a stack that builds something else than was planned.
KNOWN_STACK: Final = "use a release of Megatron whose stack this version of megatron-seams knows"


class StackRefused(Exception):
    """A refusal on its way out of a constructor.

    ``build_module`` re-raises whatever a constructor raises as ``type(error)(one_string)``. Faults,
    which have several fields, would not survive that; this does, and :func:`refusal_behind` finds
    the faults behind it. Its text names their codes alone: a traceback prints them above it.
    """

    @classmethod
    def of(cls, refusal: SeamsError | Refusal) -> "StackRefused":
        """The exception to raise from ``refusal``."""
        reasons = refusal.reasons if isinstance(refusal, Refusal) else (refusal,)
        codes = ", ".join(dict.fromkeys(reason.code for reason in reasons))
        return cls(f"refused for the reasons printed above ({codes})")


def refusal_behind(error: BaseException) -> SeamsError | Refusal | None:
    """The refusal that an error from upstream's builders carries; None if it carries none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SeamsError | Refusal):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
