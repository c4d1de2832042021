"""The process of a command: ``registry``, and ``python -m megatron_seams``.

``registry list`` is asked often and answers in about the time of ``pytest --version``: a library
that few commands need (rich, jinja2, pathspec, the readers of archives) is loaded by those alone.
tests/test_light.py holds which are not loaded, and benchmarks/registry.py measures.
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
