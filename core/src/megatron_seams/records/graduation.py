"""Graduation: a seam's checkpoint compared with the native model that replaces the seam."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from megatron_seams.base.canonical_json import finite, json_text
from megatron_seams.base.files import replace_text
from megatron_seams.errors import (
    CheckpointDiffers,
    NotGraduated,
    NumbersDiffer,
    ProofUnreadable,
    Refusal,
    SeamsError,
)
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.records.proof import Proof
from megatron_seams.records.receipt import read_receipt
from megatron_seams.upstream.surface import Native

SCHEMA: Final = 1
KIND: Final = "megatron-seams graduation"

#: The mean loss may differ by this much, nats per token: float32 on a CPU, the same arithmetic.
LOSS_BAR: Final = 1e-6
#: Any single logit by this much.
LOGITS_BAR: Final = 1e-5


@attrs.frozen(kw_only=True)
class Candidate:
    """A seam's proof, and the plan that builds the same layers without the seam.

    Attributes:
        name: The seam.
        proof: The proof of a smoke run with the seam.
        seam: The seam's entry in the proof's receipt.
        receipt_digest: The digest of that receipt.
        plan: The proof's recipe, resolved here.
        layers: 1-based layer number -> the slot and symbol that carried the seam.
    """

    name: str
    proof: Proof
    seam: Mapping[str, Any]
    receipt_digest: str
    plan: Plan
    layers: Mapping[int, str]


@attrs.frozen(kw_only=True)
class Keys:
    """The keys of the saved checkpoint, compared with those of the native model.

    Attributes:
        compared: The number of keys that either side has.
        missing: Keys of the native model that the checkpoint lacks.
        unexpected: Keys of the checkpoint that the native model lacks.
        different: Key -> saved and native shape and type, where they differ.
    """

    compared: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    different: Mapping[str, tuple[str, str]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Numbers:
    """Losses and logits of the proof's probe, in float32 on the CPU.

    Attributes:
        tokens: The number of predictions compared.
        loss_saved: The mean loss of the seam's model, nats per token.
        loss_native: The mean loss of the native model, nats per token.
        logits_difference: The greatest absolute difference of a logit.
    """

    tokens: int
    loss_saved: float
    loss_native: float
    logits_difference: float

    @property
    def loss_difference(self) -> float:
        """The absolute difference of the two mean losses, nats per token."""
        return abs(self.loss_saved - self.loss_native)

    @property
    def equal(self) -> bool:
        """Whether both differences are within their bars; a NaN is within none."""
        return self.loss_difference <= LOSS_BAR and self.logits_difference <= LOGITS_BAR


@attrs.frozen(kw_only=True)
class Graduation:
    """The whole comparison.

    Attributes:
        candidate: The seam's proof and the native plan.
        keys: The comparison of checkpoint keys.
        numbers: The comparison of numbers; None where the checkpoint could not be loaded.
    """

    candidate: Candidate
    keys: Keys
    numbers: Numbers | None

    @property
    def reasons(self) -> tuple[SeamsError, ...]:
        """The reasons why the seam cannot be deleted; empty if it can."""
        return tuple(_reasons(self))

    def to_dict(self, today: datetime.date) -> dict[str, Any]:
        """The report as JSON values (docs/schema/graduation.schema.json)."""
        candidate, numbers = self.candidate, self.numbers
        surface = candidate.plan.surface
        now = {layer.position: layer.provider for layer in candidate.plan.layers}
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "date": today.isoformat(),
            "seam": {"name": candidate.name, **candidate.seam},
            "saved_on": {
                "megatron_core": candidate.proof.megatron_core,
                "receipt_digest": candidate.receipt_digest,
            },
            "loaded_on": {
                "megatron_core": str(surface.version),
                "surface_digest": surface.digest,
            },
            "layers": [
                {
                    "position": position,
                    "saved_through": slot,
                    "built_by": f"{now[position].slot} {now[position].symbol}",
                }
                for position, slot in sorted(candidate.layers.items())
            ],
            "keys": {
                "compared": self.keys.compared,
                "missing": list(self.keys.missing),
                "unexpected": list(self.keys.unexpected),
                "different": [
                    {"key": key, "saved": saved, "native": native}
                    for key, (saved, native) in sorted(self.keys.different.items())
                ],
            },
            "numbers": None
            if numbers is None
            else {
                **{name: finite(value) for name, value in attrs.asdict(numbers).items()},
                "loss_difference": finite(numbers.loss_difference),
                "loss_bar": LOSS_BAR,
                "logits_bar": LOGITS_BAR,
            },
            "deletable": not self.reasons,
            "reasons": [reason.to_dict() for reason in self.reasons],
        }


def find_candidate(name: str, proof: Proof, environment: Environment) -> Candidate:
    """Resolve the proof's recipe here and check that native Megatron builds the seam's layers.

    Raises:
        ReceiptUnreadable: The proof's receipt was edited.
        ProofUnreadable: The proof was made on another Megatron than its receipt.
        Refusal: The recipe cannot be resolved here; or, with a :class:`NotGraduated` for each
            reason, there is nothing to prove.
    """
    body, recipe = read_receipt(proof.receipt)
    old = body["plan"]
    if old["megatron_core"]["version"] != proof.megatron_core:
        raise ProofUnreadable(
            asked="a proof and its receipt of one Megatron",
            found=f"the proof was made on {proof.megatron_core}, its receipt on "
            f"{old['megatron_core']['version']}",
            next="make a new one: a smoke run of the recipe that saves its proof",
            subject=str(proof.folder),
        )
    layers = {
        layer["position"]: f"{layer['slot']} {layer['symbol']}"
        for layer in old["layers"]
        if layer["seam"] == name
    }
    if not layers or name not in old["seams"]:
        built = ", ".join(sorted(old["seams"])) or "none"
        raise Refusal([_not_graduated(name, f"the proof has no layer of it; its seams: {built}")])
    plan = resolve(recipe, environment)
    unreplaced = [
        layer.position
        for layer in plan.layers
        if layer.position in layers and not isinstance(layer.provider, Native)
    ]
    if unreplaced:
        found = f"on megatron-core {plan.surface.version} a seam still builds these layers"
        raise Refusal([_not_graduated(name, found, tuple(unreplaced))])
    return Candidate(
        name=name,
        proof=proof,
        seam=old["seams"][name],
        receipt_digest=body["digest"],
        plan=plan,
        layers=layers,
    )


def write_report(graduation: Graduation, file: Path, today: datetime.date) -> None:
    """Write the report, which justifies the seam's deletion."""
    replace_text(file, json_text(graduation.to_dict(today)))


def _not_graduated(name: str, found: str, positions: tuple[int, ...] = ()) -> NotGraduated:
    return NotGraduated(
        asked=f"native layers in the place of seam {name!r}",
        found=found,
        next="run this where native Megatron builds the family, on the proof of a smoke run where "
        "it does not",
        subject=name,
        positions=positions,
    )


def _reasons(graduation: Graduation) -> list[SeamsError]:
    keys, name = graduation.keys, graduation.candidate.name
    groups = {
        "keys that the native model has and the checkpoint lacks": keys.missing,
        "keys that the checkpoint has and the native model lacks": keys.unexpected,
        "keys with another shape or type": tuple(
            f"{key} (saved {saved}, native {native})"
            for key, (saved, native) in sorted(keys.different.items())
        ),
    }
    reasons: list[SeamsError] = [
        CheckpointDiffers(
            asked=f"the checkpoint of seam {name!r} under native Megatron's keys",
            found=f"{len(found)} {what}: {', '.join(found)}",
            next="keep the seam, or convert the checkpoints before it is deleted",
            subject=name,
        )
        for what, found in groups.items()
        if found
    ]
    numbers = graduation.numbers
    if numbers is not None and not numbers.equal:
        reasons.append(
            NumbersDiffer(
                asked=f"the numbers of seam {name!r} from native Megatron",
                found=f"loss {numbers.loss_saved:.9f} became {numbers.loss_native:.9f} (difference "
                f"{numbers.loss_difference:.1e}, at most {LOSS_BAR:.0e}); a logit differs by "
                f"{numbers.logits_difference:.1e} (at most {LOGITS_BAR:.0e})",
                next="keep the seam: what upstream builds is not its equivalent",
                subject=name,
            )
        )
    return reasons
