"""Write the generated parts of docs/: the error codes and the command line.

``python scripts/docs.py`` writes them; ``--check`` exits with 1 if a file is not current.
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from megatron_seams.cli import cli
from megatron_seams.errors import causes

DOCS = Path(__file__).resolve().parent.parent / "docs"

_ERRORS = """\
# Error codes

Each cause has one code, which does not change. Every message says what was asked, what was found
and what to do next; a refusal lists all its reasons at once. `--json` carries the same fields.

| code | name | exit code | cause |
| --- | --- | --- | --- |
"""

_CLI = """\
# Command line

`registry` and `python -m megatron_seams` are the same program. Exit codes: 0 fine, 1 findings,
2 refused or bad input, 3 the environment is broken.
"""


def errors() -> str:
    """The table of causes."""
    rows = (
        f"| `{cause.code}` | {cause.__name__} | {int(cause.exit_code)} "
        f"| {' '.join(inspect.cleandoc(cause.__doc__ or '').split())} |"
        for cause in causes()
    )
    return _ERRORS + "\n".join(rows) + "\n"


def _command(name: str, command: click.Command) -> Iterator[str]:
    arguments = [
        p.make_metavar(click.Context(command))
        for p in command.params
        if isinstance(p, click.Argument)
    ]
    yield f"\n## `registry {' '.join([name, *arguments])}`\n"
    yield " ".join(inspect.cleandoc(command.help or "").split()) + "\n"
    options = [p for p in command.params if isinstance(p, click.Option)]
    if options:
        yield "| option | meaning |\n| --- | --- |"
        for option in options:
            metavar = (
                ""
                if option.is_flag
                else f" {option.metavar or option.make_metavar(click.Context(command))}"
            )
            spelled = f"{option.opts[-1]}{metavar}".replace("|", "\\|")
            yield f"| `{spelled}` | {option.help} |"


def command_line() -> str:
    """Every command with its options."""
    lines = [_CLI]
    for name, command in cli.commands.items():
        lines.extend(_command(name, command))
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write or check; returns the exit code."""
    check = "--check" in sys.argv
    stale = 0
    for name, text in (("errors.md", errors()), ("cli.md", command_line())):
        file = DOCS / name
        if check and (not file.exists() or file.read_text(encoding="utf-8") != text):
            sys.stderr.write(f"docs/{name} is not current: run `python scripts/docs.py`\n")
            stale = 1
        elif not check:
            file.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
