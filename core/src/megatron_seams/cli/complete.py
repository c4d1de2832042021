"""The words that a shell completes for arguments: families, seams, upstream's constants, files.

click finds it by itself (docs/cli.md): a shell runs the program with its line so far.
"""

import contextlib
from collections.abc import Iterator

import click
from click.shell_completion import CompletionItem

from megatron_seams.planning.environment import Environment, read_environment


def families(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """The known families."""
    return [name for it in _environment() for name in it.families if name.startswith(begun)]


def seams(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """The installed seams."""
    return [name for it in _environment() for name in _seams(it) if name.startswith(begun)]


def names(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """All that ``explain`` takes but tokens."""
    found = [
        name
        for it in _environment()
        for name in (*it.families, *_seams(it), *(each.constant for each in it.surface.symbols))
    ]
    return [name for name in dict.fromkeys(found) if name.startswith(begun)]


def files(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Whatever files the shell finds: recipes, configurations, folders."""
    return [CompletionItem(begun, type="file")]


def _environment() -> Iterator[Environment]:
    # A shell that completes must not be told of faults.
    with contextlib.suppress(Exception):
        yield read_environment()


def _seams(environment: Environment) -> list[str]:
    return sorted(seam.name for seam in environment.discovery.seams)
