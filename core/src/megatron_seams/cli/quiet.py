"""Running Megatron from the command line without what it and torch say by themselves."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Final

#: Loggers that warn where nothing is wrong: of CUDA that is absent, of a checkpoint's format.
_NOISY: Final = ("torch.utils.cpp_extension", "megatron.core.dist_checkpointing")


@contextlib.contextmanager
def quiet_runtime() -> Iterator[None]:
    """Within the block neither Megatron nor torch warns of packages and devices that are absent.

    Both are normal on a CPU. Their loggers stay at errors afterwards.
    """
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
