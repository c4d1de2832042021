"""What rows on the host cannot be trained with, refused before anything is allocated."""

from typing import TYPE_CHECKING, Any

from megatron_seams.errors import FeatureInvalid
from megatron_seams.runtime.trainer.running import trainers_arguments

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig


def cannot(seam: str, found: str, advice: str) -> FeatureInvalid:
    """The refusal of tables on the host.

    Args:
        seam: The seam's name.
        found: What they cannot be trained with, and why.
        advice: What to change.
    """
    return FeatureInvalid(
        asked=f'{seam} with tables = "host"',
        found=found,
        next=f'{advice}, or have tables = "device"',
        subject=seam,
        key=f"seams.{seam}.tables",
    )


def refuse(config: "TransformerConfig | None", seam: str) -> None:
    """Compare the model's configuration, and the trainer's arguments where it runs.

    Args:
        config: The model's configuration, or None.
        seam: The seam's name, for messages.

    Raises:
        FeatureInvalid: One of them is something that rows on the host cannot be trained with.
    """
    trainer = trainers_arguments()
    faults = (
        (
            getattr(config, "fp16", False),
            "fp16 scales the loss, and an overflow would not be seen in rows on the host",
            "train in bf16 or fp32",
        ),
        (
            getattr(config, "calculate_per_token_loss", False),
            "calculate_per_token_loss divides gradients by a number that only upstream's buffers "
            "are given",
            "leave calculate_per_token_loss off",
        ),
        (
            getattr(config, "cuda_graph_impl", "none") != "none",
            "a CUDA graph replays the same rows, whatever the batch",
            'leave cuda_graph_impl at "none"',
        ),
        (
            getattr(config, "gtp_weight_remat_size", 1) > 1,
            "ranks that share weights (gtp_weight_remat_size) have a batch each, and the gradients "
            "of rows are not averaged over them",
            "leave gtp_weight_remat_size at 1",
        ),
        (
            getattr(trainer, "optimizer_cuda_graph", False),
            "a CUDA graph of the optimizer replays the device's part of a step, and the rows would "
            "rest",
            "leave --optimizer-cuda-graph out",
        ),
        (
            getattr(trainer, "use_megatron_fsdp", False),
            "Megatron-FSDP has an optimizer that the rows cannot join",
            "leave --use-megatron-fsdp out",
        ),
        (
            getattr(trainer, "use_torch_fsdp2", False),
            "torch's FSDP puts other parameters in the place of those that the rows are trained "
            "with",
            "leave --use-torch-fsdp2 out",
        ),
        (
            getattr(trainer, "async_save", False),
            "an asynchronous save reads the rows from memory that the next steps write to",
            "leave --async-save out",
        ),
        (
            _saves(trainer) and getattr(trainer, "ckpt_format", None) == "torch",
            "--ckpt-format torch has no place for the moments of rows on the host",
            "leave --ckpt-format at torch_dist, or save no optimizer with --no-save-optim",
        ),
        (
            getattr(trainer, "non_persistent_ckpt_type", None) is not None,
            "the moments of rows on the host are read from the checkpoint that --load names, and "
            "not from a later one that does not persist",
            "leave --non-persistent-ckpt-type out",
        ),
    )
    for wrong, found, advice in faults:
        if wrong:
            raise cannot(seam, found, advice)


def _saves(trainer: Any) -> bool:
    """Whether the trainer saves optimizers."""
    return bool(getattr(trainer, "save", None)) and not getattr(trainer, "no_save_optim", False)
