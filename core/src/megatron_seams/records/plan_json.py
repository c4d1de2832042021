"""A plan as JSON values, for receipts, comparisons and ``resolve --json``."""

import hashlib
from typing import Any

from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.planning.plan import Custom, Layer, Plan
from megatron_seams.seams.seam import Seam


def describe_plan(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values (docs/schema/receipt.schema.json)."""
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
        "seams": {seam.name: describe_seam(seam) for seam in plan.seams},
    }


def describe_seam(seam: Seam) -> dict[str, Any]:
    """A chosen seam as JSON values, with the digests of its manifest and code."""
    return {
        "family": seam.family,
        "status": seam.manifest.seam.status,
        "owner": seam.owner,
        "upstream_fallback": seam.manifest.upstream.fallback,
        "distribution": seam.distribution,
        "version": seam.version,
        "manifest_digest": seam.manifest_digest,
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


def code_digest(seam: Seam) -> str:
    """SHA-256 over the names and contents of every file of the seam's top-level package.

    The whole package and not the seam's own folder, since the seam may use any module of the
    package. Byte code is left out, since it depends on what was imported before.
    """
    digest = hashlib.sha256()
    top = seam.directory
    for _ in seam.package.split(".")[1:]:
        top = top.parent
    for file in sorted(top.rglob("*"), key=lambda file: file.relative_to(top).as_posix()):
        if file.is_file() and file.suffix != ".pyc":
            digest.update(f"{file.relative_to(top).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def layer_line(layer: dict[str, Any]) -> str:
    """A layer of :func:`describe_plan` as one line; two layers are equal if their lines are."""
    provider = "native" if layer["seam"] is None else f"seam {layer['seam']} ({layer['owner']})"
    stage = f", stage {layer['stage']}"
    return (
        f"{layer['token']} {layer['family']}: {provider}, {layer['slot']} {layer['symbol']}{stage}"
    )
