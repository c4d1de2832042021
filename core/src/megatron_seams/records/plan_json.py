"""A plan as JSON values, for receipts, comparisons and ``resolve --json``."""

from typing import Any

from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.planning.placement import Placed, placement
from megatron_seams.planning.plan import Custom, Layer, Plan
from megatron_seams.recipes.policy import Justification
from megatron_seams.records.seam_digests import code_digest, manifest_digest
from megatron_seams.seams.seam import Seam


def describe_plan(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values (docs/schema/receipt.schema.json).

    Raises:
        ManifestUnreadable: The code of one of its seams cannot be read.
    """
    return {
        "name": plan.name,
        "pattern": {
            "text": plan.pattern.text,
            "dialect": plan.pattern.dialect,
            "depth": plan.pattern.depth,
            "stages": list(plan.pattern.stages),
            "mtp": plan.pattern.mtp,
            "mtp_depths": plan.pattern.mtp_depths,
        },
        "lowered_pattern": lowered_pattern(plan),
        "pipeline": {"ranks": plan.pipeline.ranks, "stages": list(plan.pipeline.sizes)},
        "megatron_core": {
            "version": str(plan.surface.version),
            "surface_digest": plan.surface.digest,
        },
        "layers": [_layer(layer) for layer in plan.layers],
        "mtp_layers": [_layer(layer) for layer in plan.mtp],
        "features": [
            {
                "family": feature.family,
                "placement": feature.placement,
                "layers": list(feature.layers),
                "stages": list(feature.stages),
                "seam": feature.seam.name,
                "owner": feature.seam.owner,
                "upstream_fallback": feature.seam.manifest.upstream.fallback,
                "why": feature.why,
            }
            for feature in plan.features
        ],
        "placement": [_placed(row) for row in placement(plan)],
        "seams": {
            seam.name: describe_seam(seam) | _justified(plan.justified.get(seam.name))
            for seam in plan.seams
        },
    }


def _justified(entry: Justification | None) -> dict[str, Any]:
    if entry is None:
        return {}
    return {"justified": {"reason": entry.reason, "review_by": entry.review_by.isoformat()}}


def _placed(row: Placed) -> dict[str, Any]:
    ranks = {family: list(numbers) for family, numbers in row.ranks.items()}
    numbers = {name: list(getattr(row, name)) for name in ("layers", "mtp", "stages")}
    texts = {
        name: getattr(row, name) for name in ("what", "name", "at", "provider", "owner", "why")
    }
    return {**texts, **numbers, "ranks": ranks}


def describe_seam(seam: Seam) -> dict[str, Any]:
    """A chosen seam as JSON values, with the digests of its manifest and code."""
    return {
        "family": seam.family,
        "status": seam.manifest.seam.status,
        "owner": seam.owner,
        "upstream_fallback": seam.manifest.upstream.fallback,
        "distribution": seam.distribution,
        "version": seam.version,
        "manifest_digest": manifest_digest(seam),
        "code_digest": code_digest(seam),
    }


def _layer(layer: Layer) -> dict[str, Any]:
    custom = layer.provider if isinstance(layer.provider, Custom) else None
    return {
        "position": layer.position,
        "token": layer.token,
        "family": layer.family,
        "stage": layer.stage,
        "rank": layer.rank,
        "provider": "native" if custom is None else "seam",
        "seam": custom.seam.name if custom else None,
        "owner": custom.seam.owner if custom else None,
        "symbol": layer.provider.symbol,
        "slot": layer.provider.slot,
        "why": layer.why,
    }


def layer_line(layer: dict[str, Any], *, staged: bool = True, owned: bool = True) -> str:
    """A layer of :func:`describe_plan` as one line.

    Args:
        layer: The layer.
        staged: Whether its stage and rank are in the line.
        owned: Whether its owner is, which informs and decides nothing.
    """
    owner = f" ({layer['owner']})" if owned else ""
    provider = "native" if layer["seam"] is None else f"seam {layer['seam']}{owner}"
    line = f"{layer['token']} {layer['family']}: {provider}, {layer['slot']} {layer['symbol']}"
    rank = f" on rank {layer['rank']}" if "rank" in layer else ""
    return f"{line}, stage {layer['stage']}{rank}" if staged else line
