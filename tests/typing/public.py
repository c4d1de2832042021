"""The public surface as a type checker sees it; read by mypy in ``make lint``, never run."""

from pathlib import Path
from typing import assert_type

import megatron_seams as ms


def planned(recipe: Path) -> str:
    environment = ms.read_environment()
    assert_type(environment, ms.Environment)
    asked = ms.load_recipe(recipe)
    assert_type(asked, ms.Recipe)
    plan = ms.resolve(asked, environment)
    assert_type(plan, ms.Plan)
    assert_type(plan.layers, tuple[ms.Layer, ...])
    assert_type(plan.layers[0].provider, ms.Native | ms.Custom)
    assert_type(plan.features, tuple[ms.PlannedFeature, ...])
    assert_type(plan.seams, tuple[ms.Seam, ...])
    assert_type(plan.seams[0].manifest, ms.Manifest)
    assert_type(plan.surface, ms.NativeSurface)
    return ms.make_receipt(plan, asked)


def refused(recipe: str, receipt: str) -> tuple[str, ...]:
    try:
        differences = ms.verify(receipt, ms.read_environment("megatron_core.whl"))
        assert_type(differences, tuple[ms.SeamsError, ...])
        ms.load_recipe(recipe)
    except ms.Refusal as refusal:
        assert_type(refusal.reasons, tuple[ms.SeamsError, ...])
        return tuple(reason.code for reason in refusal.reasons)
    return (ms.__version__,)
