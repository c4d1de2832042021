"""A probe: a model's losses and logits for a few tokens, kept to compare another build with."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from megatron.core import __version__ as megatron_version
from packaging.version import Version
from torch import Tensor

from megatron_seams.errors import CannotRunHere
from megatron_seams.records.proof import CHECKPOINT, PROBE, RECEIPT, Proof, write_index
from megatron_seams.runtime.checkpoint import save_checkpoint
from megatron_seams.runtime.model.next_token import NextTokenBatch

if TYPE_CHECKING:
    from megatron_seams.runtime.compat import HybridModel


@attrs.frozen(kw_only=True, eq=False)
class Probe:
    """Tokens, and a model's losses and logits for them.

    Attributes:
        tokens: [b, s + 1] int64; each but the last predicts the next.
        losses: [b, s] float32, nats.
        logits: [b, s, v] float32.
    """

    tokens: Tensor
    losses: Tensor
    logits: Tensor

    @property
    def loss(self) -> float:
        """The mean loss, nats per token, summed in float64."""
        return float(self.losses.double().mean())


@torch.no_grad()
def take_probe(model: "HybridModel", tokens: Tensor) -> Probe:
    """Compute a model's losses and logits in evaluation mode; its own mode is restored.

    Args:
        model: On one rank.
        tokens: [b, s + 1] int64.
    """
    batch, training = NextTokenBatch.of(tokens), model.training
    model.eval()
    try:
        logits = model(**batch.forward())
        losses = model(**batch.training())
    finally:
        model.train(training)
    return Probe(tokens=tokens, losses=losses.float(), logits=logits.float())


def save_proof(
    folder: Path,
    model: "HybridModel",
    tokens: Tensor,
    *,
    settings: Mapping[str, Any],
    receipt: str,
) -> Proof:
    """Save checkpoint, probe and receipt of a model, as a whole or not at all.

    Args:
        folder: Does not exist, or is empty.
        model: On one rank, in float32.
        tokens: [b, s + 1] int64, for the probe.
        settings: The native settings that the model was built with.
        receipt: The text of its plan's receipt.

    Returns:
        The proof, readable by :func:`megatron_seams.records.proof.read_proof`.
    """
    probe = take_probe(model, tokens)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (made / CHECKPOINT).mkdir()
        save_checkpoint(model, receipt, made / CHECKPOINT)
        (made / RECEIPT).write_text(receipt, encoding="utf-8")
        torch.save(attrs.asdict(probe), made / PROBE)
        proof = Proof(
            folder=made,
            # Without the commit of a checkout, which upstream appends where it finds one.
            megatron_core=Version(megatron_version).public,
            settings=settings,
        )
        write_index(proof)
        made.chmod(0o755)
        # Onto an empty folder this replaces it; a broken-off save leaves no proof behind.
        made.replace(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return attrs.evolve(proof, folder=folder)


def refuse_used(folder: Path) -> None:
    """Refuse a folder that cannot become a proof, before a run is spent on it.

    Raises:
        CannotRunHere: The folder is not empty or is a file, or it cannot be made.
    """
    found = "it exists and is not an empty folder"
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        made_in = next(it for it in folder.absolute().parents if it.exists())
        if os.access(made_in, os.W_OK | os.X_OK):
            return
        found = f"the folder {made_in} cannot be written"
    raise CannotRunHere(
        asked=f"a new proof in {folder}",
        found=found,
        next="name a folder that does not exist, in one that can be written",
        subject=str(folder),
        file=str(folder),
    )


def read_probe(file: Path) -> Probe:
    """Read a probe that :func:`save_proof` wrote; only tensors are loaded, no code."""
    return Probe(**torch.load(file, weights_only=True))
