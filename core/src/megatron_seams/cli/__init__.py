"""The ``registry`` command.

Nothing here imports torch, Megatron or a plugin; ``smoke`` does so when it is called.
"""

import contextlib
import errno
import importlib
import io
import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from megatron_seams._version import __version__
from megatron_seams.cli.seen import make_output_seen
from megatron_seams.errors import ExitCode, Refusal, SeamsError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: The exit code after Control-C, as a shell has it.
INTERRUPTED: Final = 130
#: Command -> module and attribute. A module is imported when its command is run: importing all of
#: them would take most of the time of `registry list`.
_COMMANDS: Final = {
    "accept": "accept:accept_command",
    "args": "args:args_command",
    "check": "check:check_command",
    "docs": "docs:docs_command",
    "doctor": "doctor:doctor_command",
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


class _CannotGoOn(Exception):
    """A refusal of the operating system, in words; the cause is the error itself.

    click and rich would end the program with 1, the code of findings, where a pipe is closed.
    """

    def __init__(self, error: OSError) -> None:
        if error.errno == errno.EPIPE:
            message = "whoever reads the output has closed it before its end"
        elif not _has_working_directory():
            message = "the working directory is gone; change to one that exists"
        elif error.filename is None:
            message = f"the output cannot be written: {error.strerror or error}"
        else:
            message = str(error)
        super().__init__(message)


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True


#: The operating system's errors of a path, which another path or another mode of it would end.
_OF_A_PATH: Final = frozenset(
    (
        *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.EEXIST),
        *(errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    )
)


def _is_of_a_path(error: OSError) -> bool:
    return error.filename is not None and error.errno in _OF_A_PATH and _has_working_directory()


class _Registry(click.Group):
    """The commands, each imported when it is run; a refusal becomes its message and exit code.

    An error of the operating system is a refusal too where another path or other permissions would
    end it, and a :class:`_CannotGoOn` elsewhere.
    """

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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """The commands' names; click's own would import every command for its help."""
        from click.shell_completion import CompletionItem

        named = [CompletionItem(name) for name in _COMMANDS if name.startswith(incomplete)]
        return [*named, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, which does not know commands that are not imported yet."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib  # for this message alone

            if not (meant := difflib.get_close_matches(args[0], _COMMANDS)):
                raise
            told = f"{error.format_message()} Did you mean {' or '.join(meant)}?"
            raise click.UsageError(told, ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SeamsError, Refusal) as raised:
            refusal = Refusal([raised]) if isinstance(raised, SeamsError) else raised
        except OSError as error:
            if not _is_of_a_path(error):
                raise _CannotGoOn(error) from error
            from megatron_seams.cli.usage import unusable

            refusal = Refusal([unusable(error, ctx)])
        from megatron_seams.cli.common import show_refusal

        show_refusal(refusal, ctx)
        return ctx.exit(refusal.exit_code)


@click.group(cls=_Registry, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="registry")
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
    # A shell completes names of ours only, and click writes them as bytes.
    if "_REGISTRY_COMPLETE" not in os.environ:
        make_output_seen()
    sys.exit(_run())


def _run() -> int:
    """The exit code; every failure has one, and a message if there is somewhere to write it."""
    try:
        try:
            code = cli.main(prog_name="registry", standalone_mode=False)
            sys.stdout.flush()
        except OSError as error:
            raise _CannotGoOn(error) from error
    except click.ClickException as error:
        _show_misused(error)
        return error.exit_code
    except click.Abort:
        return _stop("interrupted", INTERRUPTED)
    except _CannotGoOn as error:
        return _stop(str(error), ExitCode.ENVIRONMENT)
    return int(code or ExitCode.OK)


def _for_a_program(arguments: list[str]) -> bool:
    """Whether a command line that could not be parsed asks for JSON."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    after = dict(itertools.pairwise(words))
    return "--json" in words or "--format=json" in words or after.get("--format") == "json"


def _show_misused(error: click.ClickException) -> None:
    """Print what click found as a refusal; `registry` alone has its help."""
    if type(error).__name__ == "NoArgsIsHelpError":  # not in every click that is supported
        error.show()
        return
    from megatron_seams.cli.common import print_refusal, show_reasons
    from megatron_seams.cli.usage import misused

    refusal = Refusal([misused(error)])
    if _for_a_program(sys.argv[1:]):
        print_refusal(refusal, schema=1)
    else:
        show_reasons(refusal)


def _stop(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"registry: {message}\n")
        sys.stderr.flush()
    # Anything still buffered would be written, and fail again, when Python ends.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code
