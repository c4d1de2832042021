"""The ``registry`` command.

Nothing here imports torch, Megatron or a plugin; ``smoke`` does so when it is called.
"""

import io
import sys
from typing import Any

import click

from megatron_seams import __version__
from megatron_seams.cli.accept import accept_command
from megatron_seams.cli.args import args_command
from megatron_seams.cli.check import check_command
from megatron_seams.cli.common import show_refusal
from megatron_seams.cli.explain import explain
from megatron_seams.cli.graduate import graduate_command
from megatron_seams.cli.list import list_families
from megatron_seams.cli.preview import preview_command
from megatron_seams.cli.resolve import resolve_command
from megatron_seams.cli.smoke import smoke_command
from megatron_seams.cli.surface import surface
from megatron_seams.cli.verify import verify_command
from megatron_seams.errors import Refusal, SeamsError


class _Registry(click.Group):
    """Turns every refusal into its message and its exit code, in one place."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SeamsError as fault:
            show_refusal(Refusal([fault]))
            ctx.exit(fault.exit_code)
        except Refusal as refusal:
            show_refusal(refusal)
            ctx.exit(refusal.exit_code)


@click.group(cls=_Registry, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="registry")
def cli() -> None:
    """Say what every block of a Megatron hybrid model is built by, and who answers for it.

    Exit codes: 0 fine, 1 findings, 2 refused or bad input, 3 the environment is broken.
    """


for command in (
    list_families,
    resolve_command,
    explain,
    surface,
    args_command,
    check_command,
    preview_command,
    verify_command,
    accept_command,
    smoke_command,
    graduate_command,
):
    cli.add_command(command)


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
