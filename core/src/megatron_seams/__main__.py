"""Start a command: ``registry``, and ``python -m megatron_seams``.

``registry list`` runs often: a library that few commands need (rich, jinja2, pathspec) is loaded by
those alone. tests/test_light.py lists the modules that a listing must not load, and
benchmarks/registry.py measures it.
"""

import gc
import sys


def main() -> None:
    """Run the command line."""
    # A command is short and keeps nearly every object that it makes. Python's cycle collector,
    # during it and once more at its end, would take an eighth of a listing's time, and half of a
    # long plan's.
    gc.set_threshold(100_000)
    try:
        from megatron_seams import cli  # after the threshold: its imports make many objects

        cli.main()
    finally:
        # torch counts its objects that are left at exit, and reports frozen ones as leaks.
        if "torch" not in sys.modules:
            gc.freeze()


if __name__ == "__main__":
    main()
