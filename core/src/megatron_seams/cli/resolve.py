"""``registry resolve``: a pattern or recipe as a plan, or every reason against it."""

from collections.abc import Sequence
from pathlib import Path

import attrs
import click
from rich.console import Console
from rich.text import Text

from megatron_seams.base.wording import counted, numbered, ranges
from megatron_seams.cli.common import (
    json_option,
    megatron_option,
    print_json,
    receipt_option,
    refuse_as_json,
    show_faults,
    show_notes,
    write_receipt,
)
from megatron_seams.cli.models import asked_model, model_arguments
from megatron_seams.cli.rows import Row, draw_rows
from megatron_seams.cli.screen import console, draw_wrapped
from megatron_seams.cli.strip import draw_strip, plan_states, refused_states
from megatron_seams.cli.usage import TokensCommand
from megatron_seams.errors import Refusal
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.placement import Placed, placement
from megatron_seams.planning.plan import Custom, Layer, Plan, grouped
from megatron_seams.records.plan_json import describe_plan
from megatron_seams.records.receipt import SCHEMA

#: More pipeline stages than this are counted and not listed.
_MOST_STAGES = 64


@click.command(
    "resolve",
    short_help="The provider of every layer of a model.",
    cls=TokensCommand,
)
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
    if as_json:
        refuse_as_json(context, schema=SCHEMA)
    asked = asked_model(model, dialect, depth)
    if not as_json:
        show_notes(asked.notes)
    try:
        plan = asked.plan(read_environment(megatron))
    except Refusal as refusal:
        if not as_json:
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


def _draw_refused(refusal: Refusal) -> None:
    positions = {at for reason in refusal.reasons for at in reason.positions}
    if refusal.tokens and positions:  # no reason names a layer: the strip would mark none
        states = refused_states(refusal.tokens, positions)
        draw_strip(console(), refusal.tokens, states, [0] * len(states))


def _draw(out: Console, plan: Plan, every_layer: bool) -> None:
    pattern = plan.pattern
    title = (
        f"{plan.name}: {counted(pattern.depth, 'layer')}, dialect {pattern.dialect}, "
        f"megatron-core {plan.surface.version}"
    )
    draw_wrapped(out, Text(title, style="bold"))
    draw_strip(out, pattern.tokens, plan_states(plan), plan.pipeline.stages)
    _draw_stages(out, plan)
    ranked = _by_rank(plan)
    columns = ["count", "token", "family", "provider", "owner", "why"]
    if every_layer:
        rows = [_row(str(layer.position), (layer,)) for layer in plan.layers]
        rows += [_row(f"MTP {layer.position}", (layer,)) for layer in plan.mtp]
        columns[0] = "layer"
    else:
        rows = [_group(plan, group, str(len(group)), ranked) for group in grouped(plan.layers)]
        rows += [
            _group(plan, group, f"{len(group)} x {pattern.mtp_depths} MTP", ranked=False)
            for group in grouped(plan.mtp)
        ]
    features = [
        _feature(placed, plan, ranked) for placed in placement(plan) if placed.what == "feature"
    ]
    if every_layer:  # the first column numbers layers, and counts none
        features = [attrs.evolve(row, cells=["-", *row.cells[1:]]) for row in features]
    rows += features
    if every_layer and ranked:
        columns.insert(1, "rank")
        ranks = [f"{layer.spelled} {layer.family_rank}" for layer in plan.layers]
        ranks += ["-"] * (len(rows) - len(ranks))
        rows = [
            attrs.evolve(row, cells=[row.cells[0], rank, *row.cells[1:]])
            for row, rank in zip(rows, ranks, strict=True)
        ]
    draw_rows(out, columns, rows)


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


def _by_rank(plan: Plan) -> bool:
    """Whether layers whose tokens spell one family differ, so that their ranks say which is which.

    Otherwise a rank says no more than the number.
    """
    found: dict[str, set[tuple[str, bool]]] = {}
    named = {at for feature in plan.features for at in feature.layers}
    for layer in plan.layers:
        kind = (layer.provider.label, layer.position in named)
        found.setdefault(layer.spelled, set()).add(kind)
    return any(len(kinds) > 1 for kinds in found.values())


def _group(plan: Plan, group: Sequence[Layer], count: str, ranked: bool) -> Row:
    provider = group[0].provider
    seam = provider.seam.name if isinstance(provider, Custom) else ""
    where = numbered("layer", [layer.position for layer in group])
    if ranked:
        where += f"; {_ranks(group)}"
    return attrs.evolve(_row(count, group), below=[where, *_justified(plan, seam)])


def _row(name: str, group: Sequence[Layer]) -> Row:
    first = group[0]
    provider = first.provider
    return Row(
        cells=[name, first.token, first.family, provider.label, provider.owner], prose=[first.why]
    )


def _feature(placed: Placed, plan: Plan, ranked: bool) -> Row:
    """The row of a feature, native or a seam's."""
    seams = {f"seam {it.seam.name}": it.seam for it in plan.features}
    seam = seams.get(placed.provider)
    where = _place(placed)
    if ranked and placed.layers:
        where += f"; {_ranks([plan.layers[at - 1] for at in placed.layers])}"
    if seam is not None:
        where += f"; upstream fallback {seam.manifest.upstream.fallback}"
    count = len(placed.layers) or (plan.pattern.mtp_depths if placed.mtp else 1)
    return Row(
        cells=[str(count), "-", placed.name, placed.provider, placed.owner],
        prose=[placed.why],
        below=[where, *_justified(plan, seam.name if seam else "")],
    )


def _justified(plan: Plan, seam: str) -> list[str]:
    entry = plan.justified.get(seam)
    return [entry.line] if entry else []


def _place(placed: Placed) -> str:
    parts = []
    if placed.layers:
        at = "" if placed.at == "decoder" else f"at {placed.at} of "
        parts.append(f"{at}{numbered('layer', placed.layers)}")
    if placed.mtp:
        parts.append(f"{numbered('layer', placed.mtp)} of each MTP depth")
    return f"{', '.join(parts) or f'at {placed.at}'}, stage {ranges(placed.stages)}"


def _ranks(group: Sequence[Layer]) -> str:
    """The ranks of layers in the families that their tokens spell."""
    texts = []
    for family in dict.fromkeys(layer.spelled for layer in group):
        found = [layer.family_rank for layer in group if layer.spelled == family]
        texts.append(f"{family} {numbered('rank', found)}")
    return "; ".join(texts)
