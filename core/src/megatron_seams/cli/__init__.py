"""The ``registry`` command.

Nothing here imports torch, Megatron or a plugin; ``smoke`` does so when it is called.
"""

import importlib
import io
import sys
from typing import Any, Final

import click

from megatron_seams._version import __version__
from megatron_seams.errors import Refusal, SeamsError

#: Command -> module and attribute. A module is imported when its command is run: importing all of
#: them would take most of the time of `registry list`.
_COMMANDS: Final = {
    "accept": "accept:accept_command",
    "args": "args:args_command",
    "check": "check:check_command",
    "explain": "explain:explain",
    "graduate": "graduate:graduate_command",
    "list": "list:list_families",
    "new": "new:new_command",
    "preview": "preview:preview_command",
    "report": "report:report_command",
    "resolve": "resolve:resolve_command",
    "smoke": "smoke:smoke_command",
    "surface": "surface:surface",
    "verify": "verify:verify_command",
}


class _Registry(click.Group):
    """The commands, each imported when it is run; a refusal becomes its message and exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        found: click.Command = getattr(
            importlib.import_module(f"megatron_seams.cli.{module}"), attribute
        )
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SeamsError, Refusal) as raised:
            from megatron_seams.cli.common import show_refusal

            refusal = Refusal([raised]) if isinstance(raised, SeamsError) else raised
            show_refusal(refusal)
            ctx.exit(refusal.exit_code)


@click.group(cls=_Registry, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="registry")
def cli() -> None:
    """Show what builds every block of a Megatron hybrid model, and who answers for it.

    Exit codes: 0 fine, 1 findings, 2 refused or bad input, 3 the environment is broken.
    """


def commands() -> dict[str, click.Command]:
    """Every command by name, all of them imported."""
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def main() -> None:
    """Run the command line."""
    # An argument may be any bytes, and is shown even where the terminal cannot encode it.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name="registry")
    except BrokenPipeError:
        # The reader of the pipe (`| head`) has closed it.
        sys.stderr.close()
        sys.exit(0)
