"""Options and output that the commands share."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from megatron_seams.base.canonical_json import json_text
from megatron_seams.base.files import in_words
from megatron_seams.base.wording import counted
from megatron_seams.cli.advice import advice_on
from megatron_seams.cli.screen import console, draw_wrapped, has_width
from megatron_seams.cli.seen import seen_json
from megatron_seams.errors import Refusal, SeamsError, UsageInvalid

if TYPE_CHECKING:
    from megatron_seams.planning.plan import Plan
    from megatron_seams.recipes.recipe import Recipe

#: The lines of a message that are never wrapped.
_WHOLE: Final = ("  in: ", "  next: ", "  see: ")

#: Where the contexts of a command hold the version of its JSON document, if it prints one.
_JSON: Final = "megatron_seams.json"

F = TypeVar("F", bound=Callable[..., Any])


def megatron_option(command: F) -> F:
    """``--megatron``: plan against another Megatron than the importable one."""
    return click.option(
        "--megatron",
        type=click.Path(path_type=Path),
        metavar="WHEEL|PATH",
        help="Use this megatron-core (wheel, sdist or folder) instead of the importable one.",
    )(command)


def json_option(command: F) -> F:
    """``--json``: print JSON instead of text, a refusal too."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        callback=_note_json,
        help="Print JSON instead of text, a refusal too.",
    )(command)


def _note_json(context: click.Context, _: click.Parameter, value: bool) -> bool:
    if value:
        refuse_as_json(context)
    return value


def refuse_as_json(context: click.Context, *, schema: int = 1) -> None:
    """Print a refusal of the running command as JSON.

    Args:
        context: The command's context.
        schema: The version of the command's document.
    """
    context.meta[_JSON] = schema


def receipt_option(command: F) -> F:
    """``--receipt`` and ``--replace``: write the plan to a file."""
    for decorate in (
        click.option(
            "--replace",
            is_flag=True,
            help="Overwrite whatever FILE of --receipt holds: another plan, acceptances, anything.",
        ),
        click.option(
            "--receipt",
            type=click.Path(path_type=Path, dir_okay=False, writable=True),
            metavar="FILE",
            help="Write the plan with the versions and digests that produced it.",
        ),
    ):
        command = decorate(command)
    return command


def held_software() -> tuple[str, ...]:
    """The distributions whose versions the working directory's workspace holds.

    Raises:
        Refusal: The workspace's settings are wrong.
    """
    from megatron_seams.governance.workspace import read_workspace

    return read_workspace(Path()).policy.hold_software


def write_receipt(file: Path | None, plan: "Plan", recipe: "Recipe", *, replace: bool) -> None:
    """Write a receipt and report its path; without a file, do nothing.

    Raises:
        ReceiptKept: The file holds something else, and is not to be replaced.
        UsageInvalid: The file cannot be written.
    """
    if file is None:
        return
    from megatron_seams.records.keep import keep_receipt

    try:
        keep_receipt(file, plan, recipe, replace=replace, hold_software=held_software())
    except OSError as error:
        raise not_written(file, error, "--receipt") from error
    console(error=True).print(f"receipt: {file}", markup=False)


def not_written(path: Path, error: OSError, option: str) -> UsageInvalid:
    """The fault of a path that an option names and that cannot be written.

    The error's own path may be one that nobody named: a lock or a temporary file beside it.
    """
    why = in_words(error)
    if isinstance(error, FileNotFoundError) and not path.parent.exists():
        why = f"there is no folder {path.parent}"
    return UsageInvalid(
        asked=f"{option} {path}",
        found=f"it cannot be written: {why}",
        next="name a path in a folder that is there and can be written",
        subject=option,
        file=str(path),
    )


def print_json(value: Any) -> None:
    """Print a JSON document, with its keys in their own order."""
    # With characters that a stream's encoding replaces, the output is no JSON any more.
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    text = json_text(value, sort_keys=False, escaped=encoding != "utf8")
    sys.stdout.write(seen_json(text))


def show_faults(faults: Iterable[SeamsError], *, style: str) -> None:
    """Print faults to standard error, one paragraph each.

    On a screen a paragraph is wrapped; its paths and next steps stay whole, to be copied.
    """
    faults = list(faults)
    if not faults:
        return
    from rich.text import Text

    out = console(error=True)
    for fault in faults:
        head, *rest = str(fault).split("\n")
        if advice := advice_on(fault):
            rest.append(f"  {advice}")
        # Text and not markup, since a message may contain brackets.
        for line in (Text(head, style=style), *map(Text, rest)):
            whole = line.plain.startswith(_WHOLE) or not has_width(out)
            if whole:
                out.print(line)
            else:
                draw_wrapped(out, line, hanging=4)


def show_notes(notes: Iterable[str], *, label: str = "note") -> None:
    """Print notes to standard error, one line each after its label."""
    from rich.text import Text

    out = console(error=True)
    for note in notes:
        out.print(Text(f"{label}: {note}"))


def print_refusal(refusal: Refusal, *, schema: int) -> None:
    """Print a refusal as JSON.

    Args:
        refusal: The refusal.
        schema: The version of the command's document.
    """
    print_json(
        {
            "schema": schema,
            "outcome": "refused",
            "reasons": [reason.to_dict() for reason in refusal.reasons],
            "findings": [finding.to_dict() for finding in refusal.findings],
        }
    )


def show_refusal(refusal: Refusal, context: click.Context) -> None:
    """Print every reason of a refusal, then the other findings; as JSON where that was asked."""
    schema = context.meta.get(_JSON)
    if schema is not None:
        print_refusal(refusal, schema=schema)
        return
    show_reasons(refusal)


def show_reasons(refusal: Refusal) -> None:
    """Print every reason of a refusal as text, then the other findings."""
    show_faults(refusal.reasons, style="bold red")
    show_faults(refusal.findings, style="yellow")
    reasons = counted(len(refusal.reasons), "reason")
    console(error=True).print(f"refused: {reasons}", style="bold red")
