"""``registry list``: the audit."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from megatron_seams.cli.common import (
    console,
    json_option,
    megatron_option,
    print_json,
    show_faults,
)
from megatron_seams.errors import ExitCode
from megatron_seams.governance.audit import Audit, FamilyRow, audit
from megatron_seams.planning.environment import Environment, read_environment
from megatron_seams.seams.manifest import Upstream

if TYPE_CHECKING:
    from rich.text import Text

_STYLES = {
    "native": "green",
    "seam": "magenta",
    "experiment": "yellow",
    "superseded": "cyan",
    "broken": "bold red",
    "refused": "red",
}


@click.command("list")
@click.option("--owners", is_flag=True, help="Add who answers for each, and what retires it.")
@json_option
@megatron_option
@click.pass_context
def list_families(
    context: click.Context, owners: bool, as_json: bool, megatron: Path | None
) -> None:
    """List every block and feature family with its provider: native Megatron, or a seam.

    No plugin is imported: the list is read from manifests and Megatron's source.
    """
    found = audit(read_environment(megatron))
    if as_json:
        print_json(found.to_dict())
    else:
        show_faults(found.environment.faults, style="bold red")
        _print(found, owners)
        others = [fault for fault in found.findings if fault not in found.environment.faults]
        show_faults(others, style="yellow")
    # A missing or unreadable Megatron is graver than any other finding.
    found_some = ExitCode.FINDINGS if found.findings else ExitCode.OK
    context.exit(max((it.exit_code for it in found.environment.faults), default=found_some))


def _print(found: Audit, owners: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=_title(found.environment),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    for column in ("family", "state", "provider"):
        table.add_column(column, no_wrap=True)
    if owners:
        table.add_column("owner", no_wrap=True)
        table.add_column("upstream fallback", no_wrap=True)
        table.add_column("upstream's work")
    table.add_column("note")
    for row in found.families:
        cells: list[str | Text] = [
            row.family.name,
            Text(row.state, style=_STYLES[row.state]),
            _provider(row),
        ]
        if owners:
            upstreams = [entry.seam.manifest.upstream for entry in row.seams]
            cells += [_owner(row), _fallback(row), _tracked(upstreams)]
        table.add_row(*cells, row.note)
    for broken in found.environment.discovery.broken:
        manifest = broken.manifest
        cells = [
            manifest.seam.family if manifest else "?",
            Text("broken", style=_STYLES["broken"]),
            f"seam {broken.name} ({broken.distribution} {broken.version})",
        ]
        if owners:
            cells += [manifest.seam.owner if manifest else "unknown"]
            cells += [manifest.upstream.fallback if manifest else "unknown"]
            cells += [_tracked([manifest.upstream] if manifest else [])]
        table.add_row(*cells, ", ".join(fault.code for fault in broken.faults))
    console().print(table)


def _title(environment: Environment) -> str:
    """The Megatron of the audit."""
    if environment.surface.version:
        return f"megatron-core {environment.surface.version}"
    there = "a Megatron that cannot be read" if environment.source else "no Megatron"
    return f"{there}: none is native"


def _provider(row: FamilyRow) -> str:
    parts = [f"native {row.symbol.symbol}"] if row.symbol else []
    parts += [f"seam {entry.seam.name} {entry.seam.version}" for entry in row.seams]
    return ", ".join(parts) or "-"


def _owner(row: FamilyRow) -> str:
    owners = [row.owner] if row.symbol else []
    owners += [entry.seam.owner for entry in row.seams]
    return ", ".join(dict.fromkeys(owners)) or "-"


def _fallback(row: FamilyRow) -> str:
    fallbacks = []
    for entry in row.seams:
        upstream = entry.seam.manifest.upstream
        fallbacks.append(f"native ({upstream.accepts})" if upstream.accepts else upstream.fallback)
    return ", ".join(fallbacks) or "-"


def _tracked(upstreams: Iterable[Upstream]) -> "Text":
    """References to upstream's work, as links where the terminal has them."""
    from rich.text import Text

    found = dict.fromkeys(it for upstream in upstreams for it in upstream.references)
    listed = [Text(it.text, style=f"link {it.url}" if it.url else "") for it in found]
    return Text(", ").join(listed) if listed else Text("-")
