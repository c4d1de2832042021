"""``python -m megatron_seams``."""

from megatron_seams.cli import main

if __name__ == "__main__":
    main()
