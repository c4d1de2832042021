"""``registry surface``: the layers that a Megatron builds by itself."""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.text import Text

from megatron_seams.cli.common import json_option, print_json, show_faults
from megatron_seams.cli.rows import Row, draw_rows
from megatron_seams.cli.screen import console, draw_wrapped
from megatron_seams.errors import ExitCode, SeamsError
from megatron_seams.seams.discovery import discover
from megatron_seams.upstream.locate import importable_megatron, megatron_missing, open_megatron
from megatron_seams.upstream.source import MegatronSource
from megatron_seams.upstream.surface import NativeSurface, read_surface

SCHEMA = 1


@click.command("surface", short_help="What a Megatron builds by itself.")
@click.argument("where", metavar="[WHEEL|PATH]", required=False, type=click.Path(path_type=Path))
@json_option
@click.pass_context
def surface(context: click.Context, where: Path | None, as_json: bool) -> None:
    """Show the native surface of the importable Megatron, or of the one named.

    The source is read and not imported. A symbol that core has no family for is a finding, unless
    an installed seam names it as its family's.
    """
    source, found, notes = _read(where)
    if as_json:
        print_json(
            {
                "schema": SCHEMA,
                "outcome": "surface",
                "surface": _describe(source, found),
                "findings": [note.to_dict() for note in notes],
            }
        )
    else:
        _print(source, found)
        show_faults(notes, style="yellow")
    context.exit(ExitCode.FINDINGS if notes else ExitCode.OK)


def _read(where: Path | None) -> tuple[MegatronSource, NativeSurface, tuple[SeamsError, ...]]:
    source, notes = (open_megatron(where), ()) if where else importable_megatron()
    if source is None:
        raise megatron_missing()
    found = read_surface(source)
    claimed = _claimed()
    unmapped = tuple(note for note in found.unmapped() if note.subject not in claimed)
    return source, found, (*notes, *unmapped)


def _claimed() -> dict[str, str]:
    """Upstream's constant -> the family that an installed seam says it is."""
    seams = discover().seams
    named = {seam.manifest.upstream.symbol_name: seam.family for seam in seams}
    return {constant: family for constant, family in named.items() if constant is not None}


def _describe(source: MegatronSource, found: NativeSurface) -> dict[str, object]:
    return {
        "version": str(found.version),
        "requires_python": source.requires_python(),
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
        "slots": list(found.slots),
        "separators": list(found.separators),
        "exclusions": [rule.message for rule in found.exclusions],
    }


def _print(source: MegatronSource, found: NativeSurface) -> None:
    out = console()
    python = f"  python {source.requires_python() or 'unknown'}"
    out.print(Text.assemble((f"megatron-core {found.version}", "bold"), python))
    out.print(found.origin, style="dim", markup=False)
    shared = _shared([symbol.keywords for symbol in found.symbols])
    claimed = _claimed()
    rows = [
        Row(
            cells=[
                symbol.symbol,
                symbol.constant,
                symbol.family or claimed.get(symbol.constant, "unmapped"),
                symbol.slot,
            ],
            prose=[" ".join(keyword for keyword in symbol.keywords if keyword not in shared)],
        )
        for symbol in found.symbols
    ]
    draw_rows(out, ("symbol", "constant", "family", "slot", "also given"), rows)
    draw_wrapped(out, f"every slot is given: {' '.join(shared)}", hanging=2)
    draw_wrapped(out, f"separators: {' '.join(found.separators) or 'none'}", hanging=2)
    for rule in found.exclusions:
        draw_wrapped(out, f"refuses: {rule.message}", hanging=2)


def _shared(keywords: Sequence[Sequence[str]]) -> list[str]:
    """The keywords that every slot is given, in the order of the first slot."""
    return [name for name in keywords[0] if all(name in others for others in keywords)]
