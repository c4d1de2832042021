"""``registry list``: the audit."""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from megatron_seams.base.files import read_file
from megatron_seams.base.toml import MAX_BYTES
from megatron_seams.cli.common import json_option, megatron_option, print_json, show_faults
from megatron_seams.cli.rows import Row, draw_rows
from megatron_seams.cli.screen import console
from megatron_seams.errors import ExitCode, Refusal
from megatron_seams.governance.audit import Audit, FamilyRow, audit
from megatron_seams.planning.environment import Environment, read_environment
from megatron_seams.seams.manifest import Upstream
from megatron_seams.seams.seam import BrokenSeam, Seam

if TYPE_CHECKING:
    from rich.text import Text

    from megatron_seams.governance.justified import Justified

_STYLES = {
    "native": "green",
    "seam": "magenta",
    "experiment": "yellow",
    "superseded": "cyan",
    "broken": "bold red",
    "refused": "red",
}


@click.command("list", short_help="Every family, its provider and owner.")
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
    found = attrs.evolve(audit(read_environment(megatron)), justified=_justifications())
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
    out = console()
    out.print(_title(found.environment), style="bold", markup=False)
    names = ["family", "state", "provider", *(["owner", "upstream fallback"] if owners else [])]
    rows = [_row(row, owners, found.justified) for row in found.families]
    rows += [_broken(seam, owners) for seam in found.environment.discovery.broken]
    draw_rows(out, [*names, "note"], rows)


def _justifications() -> "dict[str, tuple[Justified, ...]]":
    """The reasons in the recipes of the workspace here; none where its table is at fault."""
    here = Path().resolve()
    if not any((folder / "pyproject.toml").is_file() for folder in (here, *here.parents)):
        return {}
    # Imported here: outside a workspace a list reads no recipe, nor where none gives a reason.
    from megatron_seams.governance.workspace import read_workspace

    with contextlib.suppress(Refusal):
        workspace = read_workspace(here)
        if any(map(_may_justify, workspace.files("recipes", "refused"))):
            from megatron_seams.governance.justified import justifications

            return justifications(workspace)
    return {}


def _may_justify(recipe: Path) -> bool:
    """Whether the text of a recipe has the key, or an escape, by which it can be spelled."""
    try:
        text = read_file(recipe, MAX_BYTES)
    except OSError:
        return False
    return b"justify" in text or b"\\" in text


def _row(row: FamilyRow, owners: bool, justified: "Mapping[str, tuple[Justified, ...]]") -> Row:
    """A family: a line for each of its providers, native first."""
    native = [(f"native {row.symbol.symbol}", row.owner, "-")] if row.symbol else []
    seams = [
        (f"seam {each.seam.name} {each.seam.version}", each.seam.owner, _fallback(each.seam))
        for each in row.seams
    ]
    providers = [*native, *seams] or [("-", "-", "-")]
    columns = [[*column] for column in zip(*providers, strict=True)]
    tracked = _tracked([each.seam.manifest.upstream for each in row.seams]) if owners else []
    reasons = [
        f"{it.entry.seam} in {it.recipe.name}, {it.entry.line}"
        for each in row.seams
        for it in justified.get(each.seam.name, ())
    ]
    return Row(
        cells=[row.family.name, row.state, *(columns if owners else columns[:1])],
        prose=[row.note],
        below=[*reasons, *tracked],
        styles={1: _STYLES[row.state]},
    )


def _broken(broken: BrokenSeam, owners: bool) -> Row:
    manifest = broken.manifest
    owned = (
        (manifest.seam.owner, manifest.upstream.fallback) if manifest else ("unknown", "unknown")
    )
    return Row(
        cells=[
            manifest.seam.family if manifest else "?",
            "broken",
            f"seam {broken.name} {broken.version}",
            *(owned if owners else ()),
        ],
        prose=[f"{broken.distribution}: {', '.join(fault.code for fault in broken.faults)}"],
        below=_tracked([manifest.upstream]) if owners and manifest else (),
        styles={1: _STYLES["broken"]},
    )


def _title(environment: Environment) -> str:
    """The Megatron of the audit."""
    if environment.surface.version:
        return f"megatron-core {environment.surface.version}"
    there = "a Megatron that cannot be read" if environment.source else "no Megatron"
    return f"{there}: none is native"


def _fallback(seam: Seam) -> str:
    upstream = seam.manifest.upstream
    return f"native ({upstream.accepts})" if upstream.accepts else upstream.fallback


def _tracked(upstreams: Iterable[Upstream]) -> "list[Text]":
    """References to upstream's work as one line, with links where the terminal has them."""
    from rich.text import Text

    found = dict.fromkeys(it for upstream in upstreams for it in upstream.references)
    listed = [Text(it.text, style=f"link {it.url}" if it.url else "") for it in found]
    return [Text("upstream's work: ") + Text(", ").join(listed)] if listed else []
