"""The layer, on whichever Megatron is on the path; against the native one where there is one."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from packaging.version import Version

from megatron_seams.errors import CannotRunHere, SettingsInvalid, Unsupported
from megatron_seams.hookspecs import LayerContext
from megatron_seams_mla.plugin import mla_layer

pytestmark = [pytest.mark.megatron, pytest.mark.release]

SIZES = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 4,
    "v_head_dim": 8,
    "rope_type": "rope",
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}


@pytest.fixture
def pg_collection() -> Iterator[Any]:
    from megatron_seams.runtime.cpu.world import cpu_world

    with cpu_world() as groups:
        yield groups


def settings(**changes: Any) -> Any:
    from megatron.core.transformer.transformer_config import MLATransformerConfig

    from megatron_seams.runtime.backends.local import LocalBackend

    known = {field.name for field in dataclasses.fields(MLATransformerConfig)}
    chosen = {k: v for k, v in LocalBackend().settings().items() if k in known}
    return MLATransformerConfig(**{**SIZES, **chosen, **changes})


@pytest.fixture
def native_mla() -> None:
    """For tests that compare with the native layer."""
    from megatron_seams.runtime.compat import HybridStackSubmodules

    if not hasattr(HybridStackSubmodules(), "mla_layer"):
        pytest.skip("the hybrid stack of this Megatron has no native MLA to compare with")


def te_settings(**changes: Any) -> Any:
    return settings(transformer_impl="transformer_engine", **changes)


def local_backend() -> Any:
    from megatron_seams.runtime.backends.local import LocalBackend

    return LocalBackend().provider


def te_backend() -> Any:
    # Upstream's provider names Transformer Engine's classes; where it is not installed, upstream
    # puts a stand-in in the place of each. Specs can be compared by either.
    from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

    return TESpecProvider()


def layer(
    config: Any,
    backend: Any,
    *,
    slot: str = "attention_layer",
    version: str = "0.19.2",
    pg_collection: Any = None,
) -> Any:
    return mla_layer(
        LayerContext(
            config=config,
            options=None,
            megatron_version=Version(version),
            backend=backend,
            pg_collection=pg_collection,
            slot=slot,
            layer_numbers=(1,),
        )
    )


def stack(config: Any, pg_collection: Any, *, symbol: str, offset: int = 0, **slot: Any) -> Any:
    from megatron_seams.runtime.compat import HybridStack, HybridStackSubmodules

    return HybridStack(
        config,
        HybridStackSubmodules(**slot),
        layer_type_list=[symbol],
        pp_layer_offset=offset,
        post_layer_norm=False,
        pg_collection=pg_collection,
    )


def dispatched(slot: str, spec: Any) -> Any:
    """The spec as the runtime puts it into its slot."""
    from megatron_seams.runtime.model.dispatch import Choice, dispatching_spec

    return dispatching_spec(Choice(slot=slot, native=None, seams={1: spec}))


def native_stack(config: Any, pg_collection: Any) -> Any:
    from megatron_seams.runtime.backends.local import LocalBackend

    native = LocalBackend().submodules(config).mla_layer
    return stack(config, pg_collection, symbol="+", mla_layer=native)


@pytest.mark.usefixtures("native_mla")
@pytest.mark.parametrize("q_lora_rank", [12, None])
def test_the_spec_is_the_native_one_of_upstreams_hybrid_stack(q_lora_rank: int | None) -> None:
    from megatron.core.models.hybrid.hybrid_layer_specs import hybrid_stack_spec

    config = te_settings(q_lora_rank=q_lora_rank)
    assert layer(config, te_backend()) == hybrid_stack_spec.submodules.mla_layer


@pytest.mark.usefixtures("native_mla")
@pytest.mark.parametrize("q_lora_rank", [12, None])
def test_qk_norms_are_where_the_native_layer_resolves_them_to(q_lora_rank: int | None) -> None:
    from megatron.core.models.hybrid.hybrid_layer_specs import hybrid_stack_spec
    from megatron.core.transformer.mla_qk_norm_config import QKNormConfigResolver

    config = te_settings(qk_layernorm=True, q_lora_rank=q_lora_rank)
    native = hybrid_stack_spec.submodules.mla_layer.submodules.self_attention.submodules
    resolved = QKNormConfigResolver(config, native).resolve()
    chosen = layer(config, te_backend()).submodules.self_attention.submodules
    # The resolver names projections that are not built (those of the other kind of query) Identity.
    built = {"linear_kv_up_proj", "kv_layernorm"}
    built |= {"linear_q_proj"} if q_lora_rank is None else {"linear_q_up_proj", "q_layernorm"}
    assert {name: getattr(chosen, name) for name in built} == {
        name: resolved[name] for name in built
    }


@pytest.mark.usefixtures("native_mla")
@pytest.mark.parametrize("version", ["0.18.2", "0.19.2"])
@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}, {"qk_layernorm": True}], ids=str)
@pytest.mark.parametrize(
    ("slot", "symbol"), [("attention_layer", "*"), ("mamba_layer", "M")], ids=["*", "M"]
)
def test_a_checkpoint_of_the_seam_continues_natively_with_the_same_numbers(
    pg_collection: Any, version: str, changes: dict[str, Any], slot: str, symbol: str
) -> None:
    import torch

    config = settings(**changes)
    spec = layer(config, local_backend(), slot=slot, version=version, pg_collection=pg_collection)
    ours = stack(config, pg_collection, symbol=symbol, **{slot: spec})
    native = native_stack(config, pg_collection)

    def shapes(module: Any) -> dict[str, Any]:
        return {key: getattr(value, "shape", None) for key, value in module.state_dict().items()}

    def sharded(module: Any) -> dict[str, Any]:
        entries = module.sharded_state_dict().items()
        return {key: (entry.key, entry.global_shape) for key, entry in entries}

    assert shapes(ours) == shapes(native)
    assert sharded(ours) == sharded(native)
    native.load_state_dict(ours.state_dict(), strict=True)
    hidden = torch.randn(6, 2, config.hidden_size)
    outputs = [module(hidden, attention_mask=None) for module in (ours, native)]
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], hidden)


@pytest.mark.parametrize(
    ("slot", "symbol"), [("attention_layer", "*"), ("mamba_layer", "M")], ids=["*", "M"]
)
def test_the_layer_keeps_the_global_number_that_the_stack_gives_it(
    pg_collection: Any, slot: str, symbol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core.transformer import transformer_layer

    from megatron_seams.runtime.model.dispatch import Choice, dispatching_spec

    # A second pipeline stage, as far as the layer could tell.
    monkeypatch.setattr(transformer_layer, "get_transformer_layer_offset", lambda *_: 100)
    config = settings()
    spec = layer(config, local_backend(), slot=slot, pg_collection=pg_collection)
    carried = dispatching_spec(Choice(slot=slot, native=None, seams={4: spec}))
    built = stack(config, pg_collection, symbol=symbol, offset=3, **{slot: carried})
    assert [part.layer_number for part in built.layers] == [4]


def test_before_0_19_the_layer_takes_a_stage_offset_and_positions_and_is_never_sparse(
    pg_collection: Any,
) -> None:
    import torch
    from megatron.core.transformer.spec_utils import build_module

    config = settings()
    # Past the constructor, which would want the sizes of the indexer, too.
    config.experimental_attention_variant = "dsa"
    spec = layer(config, local_backend(), version="0.18.2", pg_collection=pg_collection)
    built = build_module(
        spec,
        config=config,
        layer_number=4,
        pg_collection=pg_collection,
        add_layer_offset=False,
        pp_layer_offset=3,
    )
    assert built.self_attention.config.experimental_attention_variant is None
    assert config.experimental_attention_variant == "dsa"
    # Positions that 0.17's model passes to every layer although MLA has positions of its own.
    hidden = torch.randn(6, 2, config.hidden_size)
    rotary = torch.randn(6, 1, 1, config.qk_pos_emb_head_dim)
    with_rotary, _ = built(hidden, attention_mask=None, rotary_pos_emb=rotary)
    without, _ = built(hidden, attention_mask=None)
    assert torch.equal(with_rotary, without)


def test_upstreams_own_class_is_taken_wherever_it_fits(pg_collection: Any) -> None:
    import inspect

    from megatron.core.transformer.multi_latent_attention import MLASelfAttention

    spec = layer(settings(), local_backend(), version="0.18.2", pg_collection=pg_collection)
    own = "pp_layer_offset" in inspect.signature(MLASelfAttention.__init__).parameters
    assert (spec.submodules.self_attention.module is MLASelfAttention) == own


@pytest.mark.parametrize("variant", [None, "dsa"])
@pytest.mark.parametrize(
    ("slot", "symbol"), [("attention_layer", "*"), ("mamba_layer", "M")], ids=["*", "M"]
)
def test_gradients_reach_every_parameter(
    pg_collection: Any, slot: str, symbol: str, variant: str | None
) -> None:
    import torch

    config = settings(qk_layernorm=True)
    config.experimental_attention_variant = variant
    spec = layer(config, local_backend(), slot=slot, version="0.18.2", pg_collection=pg_collection)
    carried = dispatched(slot, spec)
    built = stack(config, pg_collection, symbol=symbol, **{slot: carried})
    built(torch.randn(6, 2, config.hidden_size), attention_mask=None).square().sum().backward()
    without = [
        name
        for name, parameter in built.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


def test_a_configuration_without_latents_is_refused() -> None:
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(num_layers=2, hidden_size=32, num_attention_heads=4)
    with pytest.raises(SettingsInvalid, match="set multi_latent_attention = true"):
        layer(config, local_backend())


@pytest.fixture
def before_native() -> str:
    """The release in the environment, where the seam is needed."""
    from megatron.core import __version__

    from megatron_seams_mla.attention import NATIVE_SINCE

    if Version(__version__) >= NATIVE_SINCE:
        pytest.skip("this Megatron has the layer itself")
    return __version__


@pytest.mark.parametrize("qk_layernorm", [False, True])
@pytest.mark.parametrize(
    ("slot", "symbol"), [("attention_layer", "*"), ("mamba_layer", "M")], ids=["*", "M"]
)
def test_with_one_linear_down_it_computes_the_same_and_its_checkpoint_is_the_same(
    before_native: str, pg_collection: Any, qk_layernorm: bool, slot: str, symbol: str
) -> None:
    import torch

    def built(**changes: Any) -> tuple[Any, Any]:
        config = settings(qk_layernorm=qk_layernorm, **changes)
        spec = layer(config, local_backend(), slot=slot, version=before_native)
        carried = dispatched(slot, spec)
        made = stack(config, pg_collection, symbol=symbol, **{slot: carried})
        return made, made.layers[0].self_attention

    (two, apart), (one, fused) = built(), built(mla_down_proj_fusion=True)
    assert fused.linear_qkv_down_proj.weight.shape == (12 + 8 + 4, 32)
    assert not hasattr(fused, "linear_q_down_proj")

    def sharded(module: Any) -> dict[str, Any]:
        entries = module.sharded_state_dict().items()
        return {key: (entry.key, entry.global_shape) for key, entry in entries}

    assert sharded(one) == sharded(two)
    # Upstream loads the weights of two linears into the one.
    one.load_state_dict(two.state_dict(), strict=True)
    hidden = torch.randn(6, 2, 32)
    outputs = [module(hidden, attention_mask=None) for module in (two, one)]
    assert torch.equal(*outputs)
    for module, output in zip((two, one), outputs, strict=True):
        module.zero_grad()
        output.square().sum().backward()
    gradients = [apart.linear_q_down_proj.weight.grad, apart.linear_kv_down_proj.weight.grad]
    assert torch.allclose(torch.cat(gradients), fused.linear_qkv_down_proj.weight.grad)
    assert [name for name, weight in one.named_parameters() if weight.grad is None] == []
    if (own := getattr(apart, "backward_dw", None)) is not None:
        called: list[str] = []
        for attention in (apart, fused):
            for name, part in attention.named_children():
                if name.startswith("linear_"):
                    part.backward_dw = lambda name=name: called.append(name)
        own()
        assert sorted(called) == [
            *("linear_kv_down_proj", "linear_kv_up_proj", "linear_proj"),
            *("linear_q_down_proj", "linear_q_up_proj"),
        ]
        called.clear()
        fused.backward_dw()
        assert sorted(called) == [
            *("linear_kv_up_proj", "linear_proj", "linear_q_up_proj", "linear_qkv_down_proj"),
        ]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"q_lora_rank": None}, "nothing to fuse"),
        ({"tensor_model_parallel_size": 2}, "by the widths of the whole"),
    ],
)
def test_one_linear_down_is_refused_where_upstreams_cannot_be_used(
    before_native: str, changes: dict[str, Any], found: str
) -> None:
    config = settings(mla_down_proj_fusion=True, **changes)
    with pytest.raises(Unsupported, match=found) as caught:
        layer(config, local_backend(), version=before_native)
    assert caught.value.key == "megatron.mla_down_proj_fusion"


def test_a_release_that_has_the_layer_fuses_its_own_and_not_the_seams() -> None:
    config = settings(mla_down_proj_fusion=True)
    with pytest.raises(Unsupported, match=r"drop the \[\[override\]\]") as caught:
        layer(config, local_backend(), version="0.19.2")
    assert caught.value.key == "megatron.mla_down_proj_fusion"


def test_with_transformer_engine_one_linear_down_has_the_input_norm_before_it(
    before_native: str,
) -> None:
    from megatron.core.extensions.transformer_engine import TELinear
    from megatron.core.transformer.multi_latent_attention import FusedMLASelfAttention

    spec = layer(te_settings(mla_down_proj_fusion=True), te_backend(), version=before_native)
    attention = spec.submodules.self_attention
    assert issubclass(attention.module, FusedMLASelfAttention)
    assert attention.submodules.linear_qkv_down_proj is TELinear
    assert spec.submodules.input_layernorm == te_backend().layer_norm(rms_norm=True)


@pytest.mark.parametrize("setting", ["qk_l2_norm"])
def test_a_setting_that_the_layer_does_not_have_is_refused(setting: str) -> None:
    config = te_settings()
    if not hasattr(config, setting):
        pytest.skip(f"this Megatron has no {setting}")
    setattr(config, setting, True)
    with pytest.raises(Unsupported, match=f"unset {setting}") as caught:
        layer(config, te_backend())
    assert caught.value.key == f"megatron.{setting}"


def test_a_query_norm_that_only_transformer_engine_has_is_refused_without_it() -> None:
    with pytest.raises(CannotRunHere, match="install transformer-engine, or set q_lora_rank"):
        layer(settings(qk_layernorm=True, q_lora_rank=None), local_backend())


def test_tensor_parallelism_with_transformer_engine_wants_sequence_parallelism() -> None:
    divided = te_settings(tensor_model_parallel_size=2)
    with pytest.raises(Unsupported) as refused:
        layer(divided, te_backend())
    assert refused.value.key == "sequence-parallel"
    both = te_settings(tensor_model_parallel_size=2, sequence_parallel=True)
    assert layer(both, te_backend()).submodules.self_attention
    assert layer(settings(tensor_model_parallel_size=2), local_backend()).submodules.self_attention
