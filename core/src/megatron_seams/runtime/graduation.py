"""Graduation: a seam's checkpoint loaded into a native model, and their numbers compared."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch.distributed.checkpoint.api import CheckpointException

from megatron_seams.base.files import read_file
from megatron_seams.errors import ProofUnreadable
from megatron_seams.records.graduation import Candidate, Graduation, Keys, Numbers
from megatron_seams.records.proof import Proof
from megatron_seams.records.software import MAX_BYTES
from megatron_seams.runtime.checkpoint import (
    Entry,
    load_checkpoint,
    model_entries,
    saved_entries,
    saved_receipt,
)
from megatron_seams.runtime.cpu.world import cpu_world
from megatron_seams.runtime.model.build import build_model
from megatron_seams.runtime.smoke.probe import read_probe, take_probe
from megatron_seams.runtime.smoke.run import on_one_rank, one_thread


def graduate(candidate: Candidate) -> Graduation:
    """Load the seam's checkpoint into the native model and compare its numbers with the probe's.

    On one process, on the CPU, in float32, with one thread, as the proof was made.

    Raises:
        Refusal: The native model cannot be built here.
        ProofUnreadable: The checkpoint carries another receipt than the proof.
    """
    proof = candidate.proof
    receipt = read_file(proof.receipt, MAX_BYTES).decode("utf-8")
    with _damage_named(proof):
        saved_text = saved_receipt(proof.checkpoint)
    if saved_text != receipt:
        raise _unreadable(proof, "the checkpoint carries another receipt, or none")
    with one_thread(), cpu_world():
        model = build_model(on_one_rank(candidate.plan), settings=proof.settings)
        with _damage_named(proof):
            entries = saved_entries(proof.checkpoint)
        keys = _compare_keys(entries, model)
        if keys.missing or keys.unexpected or keys.different:
            return Graduation(candidate=candidate, keys=keys, numbers=None)
        with _damage_named(proof):
            load_checkpoint(model, proof.checkpoint)
            saved = read_probe(proof.probe)
        native = take_probe(model, saved.tokens)
    return Graduation(
        candidate=candidate,
        keys=keys,
        numbers=Numbers(
            tokens=saved.losses.numel(),
            loss_saved=saved.loss,
            loss_native=native.loss,
            logits_difference=float((saved.logits - native.logits).abs().max()),
        ),
    )


@contextlib.contextmanager
def _damage_named(proof: Proof) -> Iterator[None]:
    """Turn whatever the readers of a checkpoint raise into the fault of the proof.

    Its files have the digests that it states, which anybody can compute: a proof vouches for what
    was not changed by accident, and for nothing that was made to deceive.
    """
    try:
        yield
    # torch's own error of a failed load is no Exception.
    except (Exception, CheckpointException) as error:
        raise _unreadable(proof, f"its checkpoint cannot be read: {_first_cause(error)}") from error


def _first_cause(error: BaseException) -> str:
    """The first error, on whichever rank: a refused pickle rather than a failed load."""
    if isinstance(error, CheckpointException):
        found = [wrapped[0] for wrapped in error.failures.values()]
        error = found[0] if found else error
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.300}"


def _unreadable(proof: Proof, found: str) -> ProofUnreadable:
    return ProofUnreadable(
        asked="the checkpoint of the proof's receipt",
        found=found,
        next="make a new one: a smoke run of the recipe that saves its proof",
        subject=str(proof.folder),
    )


def _compare_keys(saved: Mapping[str, Entry], model: torch.nn.Module) -> Keys:
    wanted = model_entries(model)
    return Keys(
        compared=len(saved.keys() | wanted.keys()),
        missing=tuple(sorted(wanted.keys() - saved.keys())),
        unexpected=tuple(sorted(saved.keys() - wanted.keys())),
        different={
            key: (str(saved[key]), str(wanted[key]))
            for key in sorted(saved.keys() & wanted.keys())
            if saved[key] != wanted[key]
        },
    )
