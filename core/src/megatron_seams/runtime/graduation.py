"""Graduation: a seam's checkpoint loaded into a native model, and their numbers compared."""

import torch

from megatron_seams.errors import ProofUnreadable
from megatron_seams.records.graduation import Candidate, Graduation, Keys, Numbers
from megatron_seams.runtime.checkpoint import (
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
    if saved_receipt(proof.checkpoint) != proof.receipt.read_text(encoding="utf-8"):
        raise ProofUnreadable(
            asked="the checkpoint of the proof's receipt",
            found="the checkpoint carries another receipt, or none",
            next="make a new one: a smoke run of the recipe that saves its proof",
            subject=str(proof.folder),
        )
    with one_thread(), cpu_world():
        model = build_model(on_one_rank(candidate.plan), settings=proof.settings)
        keys = _compare_keys(candidate, model)
        if keys.missing or keys.unexpected or keys.different:
            return Graduation(candidate=candidate, keys=keys, numbers=None)
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


def _compare_keys(candidate: Candidate, model: torch.nn.Module) -> Keys:
    saved = saved_entries(candidate.proof.checkpoint)
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
