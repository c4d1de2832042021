"""The process of a command: ``registry``, and ``python -m megatron_seams``.

``registry list`` is asked often, and is to answer no later than ``pytest --version`` would. Nearly
all of its time goes into loading modules and making attrs classes (half a millisecond each, half of
that for comparing and showing their values). So a module is loaded where a command needs it; what
is plainly right is taken without the library that judges the rest
(:mod:`megatron_seams.base.structure`, :mod:`megatron_seams.base.versions`,
:mod:`megatron_seams.base.distributions`); and a class of values that nobody compares says
``eq=False, repr=False``. tests/test_light.py holds what is not loaded, and benchmarks/registry.py
measures.
"""

import gc
import sys


def main() -> None:
    """Run the command line."""
    # A command is short and keeps nearly all that it makes: looking for cycles in it meanwhile, and
    # once more at its end, would be an eighth of the time of a listing, and half of a long plan's.
    gc.set_threshold(100_000)
    try:
        from megatron_seams import cli  # after that: it makes a good part of it

        cli.main()
    finally:
        # torch and its like count what of them is left at the end, and complain of it.
        if "torch" not in sys.modules:
            gc.freeze()


if __name__ == "__main__":
    main()
