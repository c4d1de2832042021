"""The ``registry`` command.

Nothing here imports torch, Megatron or a plugin; ``smoke`` does so when it is called.
"""

import importlib
import io
import sys
from collections import UserDict
from typing import Any

import click

from megatron_seams import __version__
from megatron_seams.errors import Refusal, SeamsError


class _Commands(UserDict[str, Any]):
    """Name -> command, whose module is imported when it is asked for.

    What the other commands need would be most of the time that ``registry list`` takes.
    """

    def __getitem__(self, name: str) -> click.Command:
        module, _, attribute = super().__getitem__(name).partition(":")
        command: click.Command = getattr(
            importlib.import_module(f"megatron_seams.cli.{module}"), attribute
        )
        return command


_COMMANDS = _Commands(
    {
        "list": "list:list_families",
        "resolve": "resolve:resolve_command",
        "explain": "explain:explain",
        "surface": "surface:surface",
        "args": "args:args_command",
        "check": "check:check_command",
        "report": "report:report_command",
        "new": "new:new_command",
        "preview": "preview:preview_command",
        "verify": "verify:verify_command",
        "accept": "accept:accept_command",
        "smoke": "smoke:smoke_command",
        "graduate": "graduate:graduate_command",
    }
)


class _Registry(click.Group):
    """Turns every refusal into its message and its exit code, in one place."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SeamsError, Refusal) as raised:
            from megatron_seams.cli.common import show_refusal

            refusal = Refusal([raised]) if isinstance(raised, SeamsError) else raised
            show_refusal(refusal)
            ctx.exit(refusal.exit_code)


@click.group(
    cls=_Registry, commands=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="registry")
def cli() -> None:
    """Say what every block of a Megatron hybrid model is built by, and who answers for it.

    Exit codes: 0 fine, 1 findings, 2 refused or bad input, 3 the environment is broken.
    """


def main() -> None:
    """Run the command line."""
    # A pattern is shown even where the terminal cannot spell it; an argument may hold any bytes.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name="registry")
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; there is nobody left to tell.
        sys.stderr.close()
        sys.exit(0)
