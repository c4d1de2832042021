"""``registry smoke``: build a recipe at toy width and train it, before the cluster does."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from megatron_seams.base.canonical_json import finite
from megatron_seams.cli.common import (
    held_software,
    json_option,
    print_json,
    receipt_option,
    show_faults,
    show_notes,
    write_receipt,
)
from megatron_seams.cli.models import Asked, asked_model, model_arguments
from megatron_seams.cli.quiet import quiet_runtime
from megatron_seams.cli.screen import console
from megatron_seams.cli.usage import TokensCommand
from megatron_seams.errors import ExitCode, Refusal, RuntimeMissing, SeamsError
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.plan import Plan
from megatron_seams.records.receipt import make_receipt
from megatron_seams.records.software import software

Planned = tuple[Asked, Plan, str]

if TYPE_CHECKING:
    from megatron_seams.runtime.smoke.run import SmokeReport

SCHEMA: Final = 1
#: Module that the runtime imports -> distribution to install for it.
_NEEDED: Final = {"torch": "torch", "megatron.core": "megatron-core"}


@click.command(
    "smoke",
    short_help="Build a model at toy width and train it.",
    cls=TokensCommand,
)
@model_arguments
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, readable=True),
    metavar="FILE",
    help="Train on this file's bytes instead of the standard library's sources.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), help="Optimizer steps (default: the recipe's)."
)
@click.option(
    "--save",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep checkpoint, probe and receipt there, for `registry graduate` on a later Megatron.",
)
@receipt_option
@json_option
@click.pass_context
def smoke_command(
    context: click.Context,
    model: str,
    dialect: str | None,
    depth: int | None,
    data: Path | None,
    steps: int | None,
    save: Path | None,
    receipt: Path | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Build every layer at toy width and train it on text, on this machine's CPU.

    Exits with 1 if the loss on validation text does not fall below that text's unigram entropy;
    with --save that is not judged, as a few steps are enough for the proof. Exits with 1 too where
    the loss on random bytes is lower than a causal model's can be: a layer then sees the future.
    """

    def planned() -> Planned:
        asked = asked_model(model, dialect, depth)
        plan = asked.plan(read_environment())
        require_runtime(plan)
        return asked, plan, make_receipt(plan, asked.recipe, hold_software=held_software())

    asked, plan, kept = _on_every_rank(planned)
    recipe = asked.recipe
    show_notes(asked.notes)
    show_faults(plan.findings, style="yellow")
    # Written before the training, so that a bad path does not cost a run.
    write_receipt(receipt, plan, recipe, replace=replace)
    # A program reads the document alone, and people the progress.
    out = console(error=as_json)
    with quiet_runtime():
        from megatron_seams.runtime.smoke.run import Keep, run_smoke

        keep = Keep(folder=save, receipt=kept) if save else None
        report = run_smoke(plan, recipe.smoke, data, steps, out, keep)
    if as_json:
        print_json(_described(report, plan, digest=json.loads(kept)["digest"], save=save))
    note = "" if receipt else " (keep it with --receipt FILE)"
    out.print(f"receipt {json.loads(kept)['digest']}{note}", markup=False)
    if save is not None:
        out.print(f"proof {save}: registry graduate SEAM --from {save}", markup=False)
    if report.leaks or (save is None and not report.learned):
        context.exit(ExitCode.FINDINGS)


def _described(
    report: "SmokeReport", plan: Plan, *, digest: str, save: Path | None
) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "outcome": "trained",
        "name": plan.name,
        **{
            name: [*map(finite, value)] if name == "losses" else finite(value)
            for name, value in attrs.asdict(report).items()
        },
        "learned": report.learned,
        "leaks": report.leaks,
        "receipt_digest": digest,
        "proof": None if save is None else str(save),
    }


def _on_every_rank(planned: Callable[[], Planned]) -> Planned:
    """Plan; as a rank of a launcher, together with the others (SEAM-B11)."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or not _importable("torch"):
        return planned()
    # Imported here, since commands that only read must not load the runtime.
    from megatron_seams.runtime.agreement.alike import made_alike

    def described(made: Planned) -> dict[str, Any]:
        return {"receipt": json.loads(made[2]), "software": software()}

    return made_alike("smoke", planned, described)


def require_runtime(plan: Plan) -> None:
    """Refuse, before any slow import, where torch or a supported Megatron is missing.

    Raises:
        Refusal: A package is missing, or the runtime does not support this release.
    """
    missing = missing_runtime(plan.surface.version)
    if missing:
        raise Refusal(missing)


def missing_runtime(version: Version | None) -> list[SeamsError]:
    """The packages missing to build a model, beside the Megatron of that version."""
    missing: list[SeamsError] = [
        RuntimeMissing(
            asked=f"{module}, to build a model",
            found=f"no {module} can be imported here",
            next=f"install {package}, or megatron-seams with its extra [megatron]",
            subject=package,
        )
        for module, package in _NEEDED.items()
        if not _importable(module)
    ]
    # Imported here, since commands that only read must not load the runtime.
    from megatron_seams.runtime import MEGATRON_CORE

    if version and not SpecifierSet(MEGATRON_CORE).contains(version, prereleases=True):
        missing.append(
            RuntimeMissing(
                asked="a megatron-core that the runtime builds on",
                found=f"the importable one is {version}; the runtime is for {MEGATRON_CORE}",
                next=f"install 'megatron-core{MEGATRON_CORE}'; this one can still be planned with",
                subject="megatron-core",
            )
        )
    return missing


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False  # the parent package is missing
