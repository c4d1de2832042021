"""The process of a command: ``registry``, and ``python -m megatron_seams``."""

import gc


def main() -> None:
    """Run the command line."""
    # A command is short and keeps nearly all that it makes: looking for cycles in it meanwhile, and
    # once more at its end, would be an eighth of the time of a listing, and half of a long plan's.
    gc.set_threshold(100_000)
    try:
        from megatron_seams import cli  # after that: it makes a good part of it

        cli.main()
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
