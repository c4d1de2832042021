"""The arguments of upstream's trainer, where it runs; neither torch nor Megatron is imported."""

import sys
from typing import Any, Final

#: The module of upstream that holds the arguments of a run.
_GLOBALS: Final = "megatron.training.global_vars"


def trainers_arguments() -> Any:
    """The parsed arguments of upstream's trainer; None where it does not run."""
    return getattr(sys.modules.get(_GLOBALS), "_GLOBAL_ARGS", None)
