"""``registry args``: a plan as arguments of upstream's own command line."""

from pathlib import Path

import click
from rich.text import Text

from megatron_seams.cli.common import (
    console,
    json_option,
    megatron_option,
    print_json,
    receipt_option,
    show_faults,
    write_receipt,
)
from megatron_seams.cli.models import model_arguments, recipe_of
from megatron_seams.planning.arguments import native_arguments
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.records.receipt import make_receipt


# A pattern may begin with "-" (upstream's symbol for a dense layer), which is no option.
@click.command("args", context_settings={"ignore_unknown_options": True})
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
    as_json: bool,
    megatron: Path | None,
) -> None:
    """Print the native arguments of a model: only flags that this Megatron has, quoted for a shell.

    Notes go to standard error: the custom layers and features, which no native flag expresses, and
    which of upstream's own figures are then wrong.
    """
    recipe = recipe_of(model, dialect, depth)
    environment = read_environment(megatron)
    plan = resolve(recipe, environment)
    found = native_arguments(plan, environment.settings())
    write_receipt(receipt, make_receipt(plan, recipe))
    notes = list(found.notes)
    if Path(model).suffix == ".json":
        notes.append(f"of {model} only the layers are used: its sizes are not Megatron's names")
    if as_json:
        print_json({"schema": 1, "arguments": list(found.words), "notes": notes})
        return
    click.echo("\n".join(found.words) if lines else found.for_shell())
    out = console(error=True)
    for note in notes:
        out.print(Text(f"note: {note}"), soft_wrap=True)
    show_faults(plan.findings, style="yellow")
