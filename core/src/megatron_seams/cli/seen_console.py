"""A console of rich's that makes its text seen; rich is imported where something is drawn."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from megatron_seams.cli.seen import seen


class SeenConsole(Console):
    """A console in which every text, of whatever it draws, is :func:`seen`."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of something that is drawn; its own sequences of control stay."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(seen(segment.text), segment.style)


def made_seen(*, error: bool, **options: Any) -> SeenConsole:
    """A console on a standard stream, with rich's options."""
    import sys

    stream = sys.stderr if error else sys.stdout
    return SeenConsole(file=getattr(stream, "styled", stream), **options)
