"""``registry surface``: what a Megatron builds by itself."""

from pathlib import Path

import click
from rich.table import Table

from megatron_seams.cli.common import console, json_option, print_json, show_faults
from megatron_seams.errors import ExitCode
from megatron_seams.sources import in_hand, missing, open_source
from megatron_seams.surface import NativeSurface, read_surface


@click.command("surface")
@click.argument("where", metavar="[WHEEL|PATH]", required=False, type=click.Path(path_type=Path))
@json_option
@click.pass_context
def surface(context: click.Context, where: Path | None, as_json: bool) -> None:
    """Show the native surface of the Megatron in hand, or of the one named.

    It is read from the source, which is not imported.
    """
    source, notes = (open_source(where), ()) if where else in_hand()
    if source is None:
        raise missing()
    found = read_surface(source)
    notes = (*notes, *found.unmapped())
    if as_json:
        print_json({**_describe(found), "findings": [note.to_dict() for note in notes]})
    else:
        _print(found)
        show_faults(notes, style="yellow")
    context.exit(ExitCode.FINDINGS if notes else ExitCode.OK)


def _describe(found: NativeSurface) -> dict[str, object]:
    return {
        "schema": 1,
        "version": str(found.version),
        "origin": found.origin,
        "digest": found.digest,
        "symbols": [
            {
                "symbol": symbol.symbol,
                "constant": symbol.constant,
                "family": symbol.family,
                "slot": symbol.slot,
                "keywords": list(symbol.keywords),
            }
            for symbol in found.symbols
        ],
        "separators": list(found.separators),
        "exclusions": [rule.message for rule in found.exclusions],
    }


def _print(found: NativeSurface) -> None:
    out = console()
    out.print(f"megatron-core {found.version}", style="bold", end="  ")
    out.print(found.origin, style="dim", markup=False)
    table = Table(box=None, pad_edge=False)
    for column in ("symbol", "constant", "family", "slot"):
        table.add_column(column, no_wrap=True)
    table.add_column("its loop passes")
    for symbol in found.symbols:
        table.add_row(
            symbol.symbol,
            symbol.constant,
            symbol.family or "unmapped",
            symbol.slot,
            ", ".join(symbol.keywords),
        )
    out.print(table)
    out.print(f"separators: {' '.join(found.separators) or 'none'}", markup=False)
    for rule in found.exclusions:
        out.print(f"refuses: {rule.message}", markup=False)
