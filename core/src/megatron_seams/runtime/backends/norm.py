"""The norm of the TE-free backend: torch's own, marked for sequence parallelism."""

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig


class LocalNorm:
    """Builds ``torch.nn.RMSNorm`` or ``torch.nn.LayerNorm``, by ``config.normalization``.

    Called like every norm of Megatron's, with ``config``, ``hidden_size`` and ``eps``. It is a
    class whose ``__new__`` gives torch's module, so that the parameters keep their natural names
    and upstream, which leaves plain functions uncalled in some places, calls it.

    Unlike upstream's own ``WrappedTorchNorm`` it takes sequence parallelism: each rank then sees a
    part of the sequence, and the mark on the parameters makes Megatron sum their gradients over the
    tensor-parallel ranks. ``persist_layer_norm`` and ``memory_efficient_layer_norm`` choose kernels
    and change no number; they are not read.

    Raises:
        ValueError: A normalization that torch does not have.
    """

    def __new__(  # type: ignore[misc]  # it gives torch's module, which is its whole purpose
        cls, config: "TransformerConfig", hidden_size: int, eps: float = 1e-5
    ) -> nn.Module:
        """Build the module."""
        if config.layernorm_zero_centered_gamma:
            message = "layernorm_zero_centered_gamma needs Transformer Engine's norms"
            raise ValueError(message)
        kinds: dict[str, type[nn.RMSNorm] | type[nn.LayerNorm]] = {
            "RMSNorm": nn.RMSNorm,
            "LayerNorm": nn.LayerNorm,
        }
        if config.normalization not in kinds:
            message = f"normalization {config.normalization!r} is not one of {', '.join(kinds)}"
            raise ValueError(message)
        norm = kinds[config.normalization](hidden_size, eps=eps)
        for parameter in norm.parameters():
            parameter.data = parameter.data.to(config.params_dtype)
            # Megatron reads this attribute when it finalizes gradients.
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm
