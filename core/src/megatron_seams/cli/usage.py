"""Command lines that cannot be read: unknown options, and the fault with its code."""

import difflib
import os
import re
from typing import Any, Final

import click

from megatron_seams.base.files import in_words
from megatron_seams.errors import UsageInvalid

#: A word that is an option, known or not: no token of the dialects is a small letter.
_OPTION: Final = re.compile(r"--[a-z][\w-]*(=.*)?", re.DOTALL)


class TokensCommand(click.Command):
    """A command whose argument may begin with "-", upstream's symbol for a dense layer.

    click is told to take an option that it does not know for an argument; words that can only be
    an option are refused here.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.context_settings = {**self.context_settings, "ignore_unknown_options": True}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's.

        Raises:
            click.NoSuchOption: A word before ``--`` is an option that the command does not have.
        """
        if not ctx.resilient_parsing:
            self._refuse_unknown(ctx, args)
        return super().parse_args(ctx, args)

    def _refuse_unknown(self, context: click.Context, arguments: list[str]) -> None:
        known = {
            name: option
            for option in self.get_params(context)
            if isinstance(option, click.Option)
            for name in option.opts
        }
        words = iter(arguments)
        for word in words:
            if word == "--":
                return
            name, _, value = word.partition("=")
            if name in known:
                if not known[name].is_flag and not value:
                    next(words, None)  # its value, which may look like anything
            elif _OPTION.fullmatch(word):
                near = difflib.get_close_matches(name, known)
                raise click.NoSuchOption(name, possibilities=near, ctx=context)


def misused(error: click.ClickException) -> UsageInvalid:
    """The fault of a command line that click cannot read."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "registry"
    usage = context.get_usage().partition(" ")[2] if context else f"{command} --help"
    return UsageInvalid(
        asked=f"the command line of {command}",
        found=error.format_message(),
        next=f"follow its usage: {' '.join(usage.split())}",
        subject=command,
    )


def unusable(error: OSError, context: click.Context) -> UsageInvalid:
    """The fault of a path that the operating system does not let a command use."""
    command = " ".join(filter(None, (context.command_path, context.invoked_subcommand)))
    return UsageInvalid(
        asked=f"a path that {command} can use",
        found=in_words(error),
        next="correct the path, or its permissions",
        subject=command,
        file=os.fsdecode(error.filename),
    )
