"""The layer: upstream's own, with the checkpoint keys of its native successor.

Megatron 0.19 builds its native MLA layer from ``hybrid_stack_spec.submodules.mla_layer``: an input
norm, ``MLASelfAttention``, a bias-dropout-add and no MLP. The same parts here give the same keys.
"""

from typing import Any

from megatron.core.extensions.transformer_engine import TELinear
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.multi_latent_attention import MLASelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import MLATransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from packaging.version import Version

from megatron_seams.errors import CannotRunHere, SettingsInvalid, Unsupported
from megatron_seams.hookspecs import Backend, LayerContext
from megatron_seams_mla.attention import NATIVE_SINCE, attention_class

#: Settings that are refused -> why.
_REFUSED = {
    "qk_l2_norm": "a norm that upstream's MLA does not have in any release",
}

#: Transformer Engine has these norms inside its linears; checkpoints of both use one name.
_FUSED_NAMES = {
    "self_attention.q_layernorm.": "self_attention.linear_q_up_proj.layer_norm_",
    "self_attention.kv_layernorm.": "self_attention.linear_kv_up_proj.layer_norm_",
}


def layer_spec(context: LayerContext) -> ModuleSpec:
    """Build the whole layer.

    Args:
        context: Its configuration must be an ``MLATransformerConfig``.

    Returns:
        The spec of a ``TransformerLayer`` from [s, b, h] to [s, b, h].

    Raises:
        SettingsInvalid: The configuration is not one of multi-latent attention.
        Unsupported: ``qk_l2_norm`` (MLA has none) is set; ``mla_down_proj_fusion`` with tensor
            parallelism, without ``q_lora_rank``, or on a release that has it natively; or tensor
            without sequence parallelism, with Transformer Engine.
        CannotRunHere: ``qk_layernorm`` without ``q_lora_rank`` and without Transformer Engine.
    """
    config = context.config
    _check(config)
    if config.mla_down_proj_fusion:
        _check_fusion(config, context.megatron_version)
    rms_norm = config.normalization == "RMSNorm"
    submodules = _attention_submodules(context.backend, config, rms_norm=rms_norm)
    standing_norms = submodules.kv_layernorm is not IdentityOp
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=context.backend.layer_norm(rms_norm=rms_norm),
            self_attention=ModuleSpec(
                module=attention_class(config, context.megatron_version),
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=submodules,
            ),
            self_attn_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=dict(_FUSED_NAMES) if standing_norms else {},
        ),
    )


def _attention_submodules(
    backend: Backend, config: MLATransformerConfig, *, rms_norm: bool
) -> MLASelfAttentionSubmodules:
    """The projections, and the norms of q and kv where ``qk_layernorm`` asks for them.

    With Transformer Engine the norms are part of the up-projections, as natively since 0.19;
    without it they stand alone, as in upstream's local GPT layers (:data:`_FUSED_NAMES`).
    """
    up = backend.column_parallel_linear()
    q, q_up, kv_up = up, up, up
    q_norm = kv_norm = IdentityOp
    if config.qk_layernorm:
        fused = _offered(backend, "column_parallel_layer_norm_linear")
        if fused is not None:
            kv_up = fused
            if config.q_lora_rank is None:
                q = fused
            else:
                q_up = fused
        elif config.q_lora_rank is None:
            raise _no_query_norm()
        else:
            q_norm = kv_norm = backend.layer_norm(rms_norm=rms_norm, for_qk=True)
    down = _down_projection(backend)
    if down is TELinear and config.tensor_model_parallel_size > 1 and not config.sequence_parallel:
        raise _no_whole_gradient()
    fused = config.mla_down_proj_fusion
    return MLASelfAttentionSubmodules(
        linear_q_proj=q,
        linear_q_down_proj=None if fused else down,
        linear_q_up_proj=q_up,
        linear_kv_down_proj=None if fused else down,
        # The input norm stays apart. Fact: until 0.18 the fused class leaves the norm of
        # Transformer Engine's fused linear out of checkpoints.
        linear_qkv_down_proj=down if fused else None,
        linear_kv_up_proj=kv_up,
        core_attention=backend.core_attention(),
        linear_proj=backend.row_parallel_linear(),
        q_layernorm=q_norm,
        kv_layernorm=kv_norm,
    )


def _down_projection(backend: Backend) -> type:
    """Transformer Engine's linear that is whole on every rank, or a column-parallel one.

    ``MLASelfAttention`` tells the two apart by identity and accepts no other. It gathers the output
    of a column-parallel one, so that both have the same full weight in a checkpoint.
    """
    whole = _offered(backend, "linear")
    return TELinear if whole is TELinear else backend.column_parallel_linear()


def _offered(backend: Backend, name: str) -> Any:
    """The result of the backend's method ``name``; None where it has no such method."""
    method = getattr(backend, name, None)
    return method() if method is not None else None


def _check(config: Any) -> None:
    if not isinstance(config, MLATransformerConfig) or not config.multi_latent_attention:
        raise SettingsInvalid(
            asked="layers of multi-latent attention",
            found=f"a {type(config).__name__} without multi_latent_attention",
            next="set multi_latent_attention = true and the latent ranks in [megatron]",
            subject="mla",
            key="megatron.multi_latent_attention",
        )
    for setting, found in _REFUSED.items():
        # A release without the setting cannot have it set.
        if getattr(config, setting, False):
            raise Unsupported(
                asked=f"seam 'mla' with {setting}",
                found=found,
                next=f"unset {setting} in [megatron]",
                subject="mla",
                key=f"megatron.{setting}",
            )


def _check_fusion(config: Any, version: Version) -> None:
    """Refuse the fused down-projection where upstream's own of this release could not be used."""
    if version >= NATIVE_SINCE:
        found = f"megatron-core {version} fuses its own layer's, and only that"
        advice = "drop the [[override]], or unset mla_down_proj_fusion in [megatron]"
    elif config.q_lora_rank is None:
        found = "no q_lora_rank: queries are projected directly, and there is nothing to fuse"
        advice = "set q_lora_rank, or unset mla_down_proj_fusion, in [megatron]"
    elif config.tensor_model_parallel_size > 1:
        found = (
            "tensor parallelism: until 0.18 upstream's fused projection splits a rank's part by "
            "the widths of the whole"
        )
        advice = "set tensor-parallel = 1 in [parallelism], or unset mla_down_proj_fusion"
    else:
        return
    raise Unsupported(
        asked="seam 'mla' with mla_down_proj_fusion",
        found=found,
        next=advice,
        subject="mla",
        key="megatron.mla_down_proj_fusion",
    )


def _no_whole_gradient() -> Unsupported:
    return Unsupported(
        asked="seam 'mla' with tensor parallelism, without sequence parallelism",
        found="upstream's down-projection of Transformer Engine is whole on every rank, and its "
        "rotary part would get the gradient of a rank's own heads alone",
        next="set sequence-parallel = true in [parallelism]",
        subject="mla",
        key="sequence-parallel",
    )


def _no_query_norm() -> CannotRunHere:
    return CannotRunHere(
        asked="qk_layernorm with queries that are projected directly (no q_lora_rank)",
        found="a backend without Transformer Engine, whose linear holds that norm",
        next="install transformer-engine, or set q_lora_rank",
        subject="mla",
        key="megatron.qk_layernorm",
    )
