"""``registry args``: a plan as arguments of upstream's own command line."""

from pathlib import Path

import click

from megatron_seams.cli.common import (
    json_option,
    megatron_option,
    print_json,
    receipt_option,
    show_faults,
    show_notes,
    write_receipt,
)
from megatron_seams.cli.models import asked_model, model_arguments
from megatron_seams.cli.seen import seen
from megatron_seams.cli.usage import TokensCommand
from megatron_seams.errors import NoArgument, Refusal
from megatron_seams.planning.arguments import Arguments, native_arguments
from megatron_seams.planning.environment import read_environment


@click.command(
    "args",
    short_help="Print a model's native Megatron arguments.",
    cls=TokensCommand,
)
@model_arguments
@click.option("--lines", is_flag=True, help="One unquoted word for each line, for `mapfile -t`.")
@receipt_option
@json_option
@megatron_option
def args_command(
    model: str,
    dialect: str | None,
    depth: int | None,
    lines: bool,
    receipt: Path | None,
    replace: bool,
    as_json: bool,
    megatron: Path | None,
) -> None:
    """Print the native arguments of a model: only flags that this Megatron has, quoted for a shell.

    They make the model of the plan under upstream's trainer: where its command line has another
    default than Megatron's classes, the value is printed. Standard error has what a run still
    needs, and notes: the custom layers and features, which no native flag expresses, and which of
    upstream's own figures are then wrong.
    """
    asked = asked_model(model, dialect, depth)
    environment = read_environment(megatron)
    plan = asked.plan(environment)
    found = native_arguments(plan, environment.settings())
    if not as_json:
        _check_text(found, lines=lines)
    write_receipt(receipt, plan, asked.recipe, replace=replace)
    notes = [*found.notes, *asked.notes]
    if as_json:
        print_json(
            {
                "schema": 1,
                "arguments": list(found.words),
                "needs": [
                    {"flags": list(need.flags), "why": need.why, "key": need.key}
                    for need in found.needs
                ],
                "notes": notes,
            }
        )
        return
    click.echo("\n".join(found.words) if lines else found.for_shell())
    show_notes(map(str, found.needs), label="still needed")
    show_notes(notes)
    show_faults(plan.findings, style="yellow")


def _check_text(found: Arguments, *, lines: bool) -> None:
    """Refuse words that are not the same when they are read from the text that is printed.

    Raises:
        Refusal: A word has hidden characters, which are shown as escapes; or several lines, of
            which ``lines`` would make several words.
    """
    faults = [
        NoArgument(
            asked=f"the word {word!r:.80} as text",
            found="it has characters that are not printed as they are, or several lines",
            next="correct the value in the recipe, or take the words from --json",
            subject="arguments",
        )
        for word in dict.fromkeys(found.words)
        if seen(word) != word or (lines and "\n" in word)
    ]
    if faults:
        raise Refusal(faults)
