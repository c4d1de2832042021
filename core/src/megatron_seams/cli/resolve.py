"""``registry resolve``: a pattern or recipe as a plan, or every reason against it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from megatron_seams.cli.common import (
    console,
    json_option,
    megatron_option,
    print_json,
    receipt_option,
    show_faults,
    show_notes,
    write_receipt,
)
from megatron_seams.cli.models import Asked, asked_model, model_arguments
from megatron_seams.cli.strip import draw_strip, plan_states, refused_states
from megatron_seams.errors import Refusal, SeamsError
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.plan import Layer, Plan, grouped
from megatron_seams.recipes.pipeline import one_rank
from megatron_seams.records.plan_json import describe_plan
from megatron_seams.records.receipt import SCHEMA

#: More pipeline stages than this are counted and not listed.
_MOST_STAGES = 64


# A pattern may begin with "-" (upstream's symbol for a dense layer), which is no option.
@click.command("resolve", context_settings={"ignore_unknown_options": True})
@model_arguments
@click.option("--layers", is_flag=True, help="One row for each layer instead of each provider.")
@receipt_option
@json_option
@megatron_option
@click.pass_context
def resolve_command(
    context: click.Context,
    model: str,
    dialect: str | None,
    depth: int | None,
    layers: bool,
    receipt: Path | None,
    replace: bool,
    as_json: bool,
    megatron: Path | None,
) -> None:
    """Resolve every layer: native first, exactly one seam second, refused otherwise."""
    try:
        asked, plan = _planned(model, dialect, depth, megatron, quiet=as_json)
    except Refusal as refusal:
        if as_json:
            print_json(_refused(refusal))
            context.exit(refusal.exit_code)
        _draw_refused(refusal)
        raise
    if receipt is not None:
        write_receipt(receipt, plan, asked.recipe, replace=replace)
    if as_json:
        findings = [finding.to_dict() for finding in plan.findings]
        found = {
            "schema": SCHEMA,
            "outcome": "plan",
            "plan": describe_plan(plan),
            "findings": findings,
        }
        print_json(found | ({"notes": list(asked.notes)} if asked.notes else {}))
        return
    _draw(console(), plan, layers)
    show_faults(plan.findings, style="yellow")


def _planned(
    model: str, dialect: str | None, depth: int | None, megatron: Path | None, *, quiet: bool
) -> tuple[Asked, Plan]:
    try:
        asked = asked_model(model, dialect, depth)
        if not quiet:
            show_notes(asked.notes)
        return asked, asked.plan(read_environment(megatron))
    except SeamsError as fault:  # one that stops everything, such as --megatron without a Megatron
        raise Refusal([fault]) from fault


def _refused(refusal: Refusal) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "outcome": "refused",
        "reasons": [reason.to_dict() for reason in refusal.reasons],
        "findings": [finding.to_dict() for finding in refusal.findings],
    }


def _draw_refused(refusal: Refusal) -> None:
    positions = {at for reason in refusal.reasons for at in reason.positions}
    if refusal.tokens and positions:  # no reason names a layer: the strip would mark none
        states = refused_states(refusal.tokens, positions)
        draw_strip(console(), refusal.tokens, states, [0] * len(states))


def _draw(out: Console, plan: Plan, every_layer: bool) -> None:
    pattern = plan.pattern
    out.print(
        f"{plan.name}: {pattern.depth} layers, dialect {pattern.dialect}, "
        f"megatron-core {plan.surface.version}",
        style="bold",
        markup=False,
    )
    draw_strip(out, pattern.tokens, plan_states(plan), plan.pipeline.stages)
    _draw_stages(out, plan)
    table = Table(box=None, pad_edge=False)
    for column in ("count", "layers", "token", "family", "provider", "owner"):
        table.add_column(column, no_wrap=column != "layers")
    table.add_column("why")
    group_of = _each if every_layer else grouped
    for group in group_of(plan.layers):
        _row(table, group, str(len(group)))
    for group in group_of(plan.mtp):
        _row(table, group, f"{len(group)} x {pattern.mtp_depths} MTP")
    for feature in plan.features:
        table.add_row(
            "1",
            f"at {feature.place}",
            "-",
            feature.family,
            f"seam {feature.seam.name}, fallback {feature.seam.manifest.upstream.fallback}",
            feature.seam.owner,
            feature.why,
        )
    out.print(table)


def _draw_stages(out: Console, plan: Plan) -> None:
    """A row for each pipeline stage: its rank and its layers."""
    stages = len(plan.pipeline.sizes)
    if stages == 1:
        return
    if stages > _MOST_STAGES:
        out.print(f"({stages} stages on {plan.pipeline.ranks} ranks: too many to draw)")
        return
    for stage, part in enumerate(plan.pipeline.slices()):
        layers = f"layers {part.start + 1} to {part.stop}" if part.stop > part.start else "no layer"
        out.print(f"stage {stage} on rank {plan.pipeline.rank_of(stage)}: {layers}")
    missing = one_rank(plan.parallelism, plan.pattern)
    if missing is not None:
        out.print(f"to run it, {missing.next}", markup=False)


def _each(layers: Iterable[Layer]) -> tuple[tuple[Layer, ...], ...]:
    return tuple((layer,) for layer in layers)


def _row(table: Table, group: Sequence[Layer], count: str) -> None:
    first = group[0]
    table.add_row(
        count,
        ", ".join(str(layer.position) for layer in group),
        first.token,
        first.family,
        first.provider.label,
        first.provider.owner,
        first.why,
    )
