"""Building: a plan without a seam is upstream's own model, and one with seams has no wrapper."""

import pytest
import torch

from megatron_seams.errors import CannotRunHere, Refusal, SettingsInvalid, UpstreamForbids
from megatron_seams.recipes.recipe import Parallelism
from sparse_attention import sparse_backend, sparse_settings

pytestmark = [pytest.mark.megatron, pytest.mark.release, pytest.mark.usefixtures("world")]

MOE = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 32}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 12,
    "rope_type": "rope",
}


def batch(length=16):
    ids = torch.randint(0, 64, (2, length), generator=torch.Generator().manual_seed(7))
    return {
        "input_ids": ids,
        "position_ids": torch.arange(length).expand(2, -1),
        "attention_mask": None,
    }


def train_once(model):
    """One training step; the names of the parameters that got no gradient."""
    inputs = batch()
    labels = inputs["input_ids"]
    loss = model(**inputs, labels=labels, loss_mask=torch.ones(labels.shape)).mean()
    loss.backward()
    torch.optim.Adam(model.parameters()).step()
    assert loss.isfinite()
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


def tree(module):
    return [(name, type(part)) for name, part in module.named_modules()]


def checkpoint_keys(model):
    """The names that a distributed checkpoint would hold."""
    return {getattr(part, "key", name) for name, part in model.sharded_state_dict().items()}


def test_a_plan_without_a_seam_is_upstreams_own_model(plan_of):
    from megatron.core.transformer.spec_utils import ModuleSpec

    from megatron_seams.runtime import compat
    from megatron_seams.runtime.backends.backend import choose_backend
    from megatron_seams.runtime.model.build import build_model

    plan = plan_of("*-*E", megatron=MOE)
    torch.manual_seed(5)
    ours = build_model(plan)
    torch.manual_seed(5)
    # Upstream's final norm needs Transformer Engine, so the two are compared before it.
    theirs = compat.build_hybrid_model(
        ours.config,
        ModuleSpec(
            module=compat.HybridStack,
            params={"post_layer_norm": False},
            submodules=choose_backend().submodules(ours.config),
        ),
        vocab_size=64,
        max_sequence_length=32,
        hybrid_layer_pattern="*-*E",
        position_embedding_type="rope",
    )
    norm = ("decoder.final_norm", torch.nn.RMSNorm)
    ours_tree = tree(ours)
    ours_tree.remove(norm)
    assert [part for part in ours_tree if part[0] != "decoder"] == [
        part for part in tree(theirs) if part[0] != "decoder"
    ]
    assert set(ours.state_dict()) - {"decoder.final_norm.weight"} == set(theirs.state_dict())
    seen = []
    ours.decoder.final_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    theirs.decoder.register_forward_hook(lambda _, __, output: seen.append(output))
    ours(**batch())
    theirs(**batch())
    assert torch.equal(seen[0], seen[1])


def test_every_family_that_the_local_backend_has_trains(plan_of, native):
    from megatron_seams.runtime.model.build import build_model

    for pattern, settings in (
        ("*-E", MOE | {"qk_layernorm": True}),
        ("+-E", MOE | MLA | {"qk_layernorm": True}),
        ("+-", MLA | {"rope_type": "yarn"}),
        ("*-", {"normalization": "LayerNorm", "add_bias_linear": True}),
        ("*E", MOE | {"moe_shared_expert_intermediate_size": 32, "moe_aux_loss_coeff": 0.1}),
    ):
        if native(pattern):
            assert train_once(build_model(plan_of(pattern, megatron=settings))) == [], pattern


@pytest.mark.parametrize("pattern", ["DED", "DE+"])
def test_sparse_attention_trains_where_its_kernel_is(plan_of, native, monkeypatch, pattern):
    from megatron_seams.runtime.model.build import build_model

    if not native(pattern):
        pytest.skip(f"this Megatron builds not all of {pattern} by itself")
    plan = plan_of(pattern, megatron=MOE | MLA | sparse_settings())
    assert train_once(build_model(plan, backend=sparse_backend(monkeypatch))) == []


def test_a_seam_leaves_no_trace_of_a_wrapper(plan_of):
    from megatron.core.ssm.mamba_layer import MambaLayer

    from megatron_seams.runtime.model.build import build_model

    plan = plan_of("R-*R", seams=("rider",), tokens={"R": "recurrent"})
    model = build_model(plan)
    assert [type(layer).__name__ for layer in model.decoder.layers] == [
        "MambaLayer",
        "MLPLayer",
        "TransformerLayer",
        "MambaLayer",
    ]
    assert type(model.decoder.layers[0]) is MambaLayer
    assert type(model.decoder.layers[0].mixer).__name__ == "RunningMean"
    seam_keys = {"mixer.out.weight", "norm.weight"}
    for layer in (0, 3):
        prefix = f"decoder.layers.{layer}."
        for keys in (set(model.state_dict()), checkpoint_keys(model)):
            found = {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
            assert found == seam_keys
    assert train_once(model) == []


def test_a_seam_beside_native_layers_of_its_carrier_is_told_apart_by_number(plan_of):
    from megatron.core.transformer.attention import SelfAttention

    from megatron_seams.runtime.model.build import build_model

    plan = plan_of("K*-*K", seams=("whole",), tokens={"K": "kda"})
    layers = build_model(plan).decoder.layers
    assert [type(layer).__name__ for layer in layers] == [
        "WholeLayer",
        "TransformerLayer",
        "MLPLayer",
        "TransformerLayer",
        "WholeLayer",
    ]
    assert isinstance(layers[1].self_attention, SelfAttention)
    assert [layer.layer_number for layer in layers] == [1, 2, 3, 4, 5]


def test_a_seam_at_layer_1_does_not_reach_into_an_mtp_depth(plan_of):
    from megatron_seams.runtime.compat import HybridStack
    from megatron_seams.runtime.model.build import build_model

    # Both MTP depths begin with the symbol that carries the seam, as layer 1 of their own.
    plan = plan_of("K-*/*-/*-", seams=("whole",), tokens={"K": "kda"})
    model = build_model(plan)
    assert type(model.decoder.layers[0]).__name__ == "WholeLayer"
    nested = [part for _, part in model.mtp.named_modules() if isinstance(part, HybridStack)]
    assert len(nested) == 2
    for stack in nested:
        assert type(stack) is HybridStack
        assert [type(layer).__name__ for layer in stack.layers] == ["TransformerLayer", "MLPLayer"]
    assert train_once(model) == []


def test_the_submodules_that_upstream_keeps_are_not_changed(plan_of):
    from megatron.core.transformer.spec_utils import ModuleSpec

    from megatron_seams.runtime.backends.backend import choose_backend
    from megatron_seams.runtime.model.build import build_model
    from megatron_seams.runtime.model.stack import with_seams

    config = build_model(plan_of("*-")).config
    submodules = choose_backend().submodules(config)
    before = submodules.attention_layer
    swapped = with_seams(submodules, {"attention_layer": {1: ModuleSpec(module=torch.nn.Identity)}})
    assert submodules.attention_layer is before
    assert swapped.attention_layer is not before


def test_what_the_machine_cannot_build_is_named_at_once_with_reasons(plan_of):
    from megatron_seams.runtime.model.build import build_model

    with pytest.raises(Refusal) as refused:
        build_model(plan_of("M*GM"))
    mamba, gdn = refused.value.reasons
    assert (type(mamba), mamba.subject, mamba.positions) == (CannotRunHere, "mamba", (1, 4))
    assert "mamba-ssm" in mamba.found
    assert (type(gdn), gdn.subject, gdn.positions) == (CannotRunHere, "gdn", (3,))


def test_settings_that_megatron_does_not_accept_are_a_refusal(plan_of):
    from megatron_seams.runtime.model.build import build_model

    plan = plan_of("*-")
    for settings, message in (
        ({"fp16": True, "bf16": True}, "Only one of"),
        ({"hidden_sise": 32}, "hidden_sise"),
        ({"kv_lora_rank": 16}, "kv_lora_rank"),  # there is no latent attention in the plan
        ({"activation_func": "swish"}, "squared_relu"),
        ({"window_size": (4, 0)}, "window_size"),  # raised while the layers are built
        ({"num_query_groups": 0}, "ZeroDivisionError"),  # likewise
    ):
        with pytest.raises(Refusal) as refused:
            build_model(plan, settings={**plan.megatron, **settings})
        (reason,) = refused.value.reasons
        assert isinstance(reason, SettingsInvalid)
        assert message in str(reason)


def test_an_error_that_names_a_variable_of_the_environment_is_blamed_on_it(plan_of, monkeypatch):
    from megatron_seams.runtime.model.settings import rejected

    plan = plan_of("*-")
    error = AssertionError("NVTE_FLASH_ATTN set to 0, but expected 1 for attention backend auto")
    monkeypatch.delenv("NVTE_FLASH_ATTN", raising=False)  # upstream sets it, too
    assert rejected(error, plan).key == "megatron"
    monkeypatch.setenv("NVTE_FLASH_ATTN", "0")
    blamed = rejected(error, plan)
    assert (blamed.key, blamed.subject) == (None, "NVTE_FLASH_ATTN")
    assert "NVTE_FLASH_ATTN=0" in blamed.found


def test_stages_that_one_rank_would_leave_out_are_refused(plan_of):
    from megatron_seams.runtime.model.build import build_model

    with pytest.raises(Refusal) as refused:
        build_model(plan_of("*-|*-"))
    (reason,) = refused.value.reasons
    assert isinstance(reason, SettingsInvalid)
    assert "2 stages" in reason.asked


def test_every_reason_against_a_build_is_given_at_once(plan_of):
    from megatron_seams.runtime.model.build import build_model

    plan = plan_of("M*")
    with pytest.raises(Refusal) as refused:
        build_model(plan, settings={"hidden_sise": 32})
    assert [reason.subject for reason in refused.value.reasons] == [
        "mamba",
        "hidden_sise",
        "vocab_size",
        "max_sequence_length",
    ]


def test_a_refusal_of_a_hook_survives_upstreams_builders(plan_of, monkeypatch):
    import rider.plugin

    from megatron_seams.hookspecs import hookimpl
    from megatron_seams.runtime.model.build import build_model

    plan = plan_of("R-", seams=("rider",), tokens={"R": "recurrent"})

    @hookimpl
    def recurrent_layer(context):
        raise UpstreamForbids(asked="a", found=f"slot {context.slot}", next="b")

    monkeypatch.setattr(rider.plugin, "recurrent_layer", recurrent_layer)
    with pytest.raises(UpstreamForbids, match="slot mamba_layer"):
        build_model(plan)


def test_upstreams_fused_latent_projection_is_refused_under_a_seam_in_its_slot(plan_of, native):
    if not native("mla"):
        pytest.skip("this Megatron has no slot mla_layer")
    from megatron.core.transformer.spec_utils import ModuleSpec

    from megatron_seams.runtime.model.build import build_model
    from megatron_seams.runtime.model.stack import refuse_fused_mla

    config = build_model(plan_of("+-", megatron=MLA)).config
    specs = {"mla_layer": {2: ModuleSpec(module=torch.nn.Identity)}}
    refuse_fused_mla(config, specs)
    config.mla_down_proj_fusion = True
    refuse_fused_mla(config, {"mamba_layer": specs["mla_layer"]})
    with pytest.raises(UpstreamForbids) as refused:
        refuse_fused_mla(config, specs)
    assert refused.value.positions == (2,)


def test_the_configuration_follows_from_the_plan(plan_of, native):
    from megatron_seams.runtime.backends.backend import choose_backend
    from megatron_seams.runtime.model.settings import model_settings

    spread = Parallelism(tensor_parallel=2, sequence_parallel=True, pipeline_parallel=2)
    # The latent attention that this release has; plain attention where it has none.
    symbol = next(symbol for symbol in "+D*" if native(symbol))
    pattern = "+-|+-|+E|+-/+/+".replace("+", symbol)
    latent = MLA if symbol != "*" else {}
    plan = plan_of(pattern, megatron=latent | MOE, parallelism=spread)
    settings = {**plan.megatron, "rotary_base": 5000, "bf16": True}
    made = model_settings(plan, settings, choose_backend().settings())
    config = made.config
    assert (config.num_layers, config.mtp_num_layers) == (8, 2)
    assert config.multi_latent_attention == bool(latent)
    assert config.is_hybrid_model
    assert (config.tensor_model_parallel_size, config.sequence_parallel) == (2, True)
    assert (config.pipeline_model_parallel_size, config.virtual_pipeline_model_parallel_size) == (
        2,
        2,
    )
    assert config.params_dtype is config.pipeline_dtype is torch.bfloat16
    assert config.transformer_impl == "local"
    # An argument of the model and a field of the latent configuration: both get it.
    assert made.arguments["rotary_base"] == 5000
    assert not latent or config.rotary_base == 5000
    plain = plan_of("*-")
    assert not model_settings(plain, plain.megatron, {}).config.multi_latent_attention


def test_a_later_stage_numbers_its_seams_globally(plan_of):
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.spec_utils import build_module

    from megatron_seams.runtime.backends.backend import choose_backend
    from megatron_seams.runtime.model.build import build_model, stack_spec
    from megatron_seams.runtime.model.prepare import prepare

    plan = plan_of(
        "*-|KR",
        seams=("whole", "rider"),
        tokens={"K": "kda", "R": "recurrent"},
        parallelism=Parallelism(pipeline_parallel=2),
    )
    config = build_model(plan_of("*-")).config
    spec = stack_spec(prepare(plan, choose_backend()), config)
    stack = build_module(
        spec,
        config,
        layer_type_list=["*", "M"],  # what the two seams are lowered to
        pp_layer_offset=2,
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )
    assert [type(layer).__name__ for layer in stack.layers] == ["WholeLayer", "MambaLayer"]
    assert [layer.layer_number for layer in stack.layers] == [3, 4]
    assert stack.layers[1].mixer.layer_number == 4
    assert stack.layers[1].mixer.pp_layer_offset == 2
