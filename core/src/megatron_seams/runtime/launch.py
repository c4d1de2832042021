"""The model of a receipt under upstream's own trainer.

Upstream's command line takes the place of a Python object: ``--spec megatron_seams.runtime.launch
stack_spec``. That object is made when this module is imported, from the receipt that the
environment variable ``MEGATRON_SEAMS_RECEIPT`` names; ``registry args`` prints both.

Upstream logs an ImportError of this import, goes on without it, and from 0.18 on then builds its
own default stack: a seam's layers would silently become those of the slot that carries them. So no
ImportError may leave this module; whatever goes wrong stops the run.
"""

import os
from typing import Any

try:
    from megatron_seams.runtime.trainer.stack import receipt_stack

    stack_spec = receipt_stack(os.environ)
except ImportError as error:
    message = f"the seams' stack cannot be made: {type(error).__name__}: {error}"
    raise RuntimeError(message) from error


def hybrid_stack_spec(config: Any = None) -> Any:
    """The same spec by a name that a saved run configuration may hold; its path is a promise.

    Args:
        config: What the caller builds the model from, such as Megatron-Bridge's provider; the
            receipt decides, and it is not read.

    Returns:
        A ``ModuleSpec``, as ``stack_spec``.
    """
    del config
    return stack_spec
