"""The TE-free backend: the numbers of upstream's own modules, where upstream has a TE-free one."""

import itertools

import pytest
import torch

pytestmark = [pytest.mark.megatron, pytest.mark.release, pytest.mark.usefixtures("world")]

MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 12,
    "rope_type": "rope",
}


def config(**changes):
    from megatron.core.transformer.transformer_config import TransformerConfig

    settings = {
        "num_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "attention_dropout": 0.0,
        "normalization": "RMSNorm",
        "use_cpu_initialization": True,
        "masked_softmax_fusion": False,
    }
    return TransformerConfig(**settings | changes)


def attention(cls, **changes):
    from megatron.core.transformer.enums import AttnMaskType

    return cls(
        config=config(**changes),
        layer_number=3,
        attn_mask_type=AttnMaskType.causal,
        attention_type="self",
    )


def test_the_core_attention_computes_what_upstreams_does():
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    from megatron_seams.runtime.backends.core_attention import LocalCoreAttention

    torch.manual_seed(0)
    query = torch.randn(10, 2, 4, 8, requires_grad=True)
    key, value = (torch.randn(10, 2, 2, 8, requires_grad=True) for _ in range(2))
    mask = torch.ones(10, 10, dtype=torch.bool).triu(1)[None, None]
    results = []
    for scaling in (False, True):
        for cls in (LocalCoreAttention, DotProductAttention):
            core = attention(cls, apply_query_key_layer_scaling=scaling)
            assert list(core.parameters()) == []
            out = core(query, key, value, mask)
            gradients = torch.autograd.grad(out.square().sum(), (query, key, value))
            results.append((out, *gradients))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            # float32 gradients of about 10, summed in another order.
            torch.testing.assert_close(one, two, rtol=1e-5, atol=4e-6)


def test_the_last_query_sees_all_keys_without_a_mask_as_upstream_decodes():
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_seams.runtime.backends.core_attention import LocalCoreAttention

    core = attention(LocalCoreAttention)
    query, (key, value) = torch.randn(7, 2, 4, 8), torch.randn(2, 7, 2, 2, 8)
    whole = core(query, key, value)
    last = core(query[-1:], key, value, attn_mask_type=AttnMaskType.no_mask)
    torch.testing.assert_close(last, whole[-1:])
    with pytest.raises(ValueError, match="only causal"):
        core(query[-2:], key, value, attn_mask_type=AttnMaskType.no_mask)


def test_what_the_core_attention_does_not_compute_it_refuses():
    from megatron_seams.runtime.backends.core_attention import LocalCoreAttention

    for changes, message in (
        ({"window_size": (4, 0)}, "window_size"),
        ({"softmax_type": "off-by-one"}, "off-by-one"),
    ):
        with pytest.raises(ValueError, match=message):
            attention(LocalCoreAttention, **changes)


def test_packed_documents_do_not_see_each_other(plan_of, native):
    from megatron.core.packed_seq_params import PackedSeqParams

    from megatron_seams.runtime.model.build import build_model

    bounds = [0, 5, 6, 12]
    boundaries = torch.tensor(bounds, dtype=torch.int32)
    packed = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=6,
        max_seqlen_kv=6,
    )
    ids = torch.randint(0, 64, (1, 12), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(12).unsqueeze(0)
    for pattern, settings in (("*-", {}), ("+-", MLA)):
        if not native(pattern):
            continue
        model = build_model(plan_of(pattern, megatron=settings)).eval()
        together = model(ids, positions, None, packed_seq_params=packed)
        for start, end in itertools.pairwise(bounds):
            alone = model(ids[:, start:end], positions[:, : end - start], None)
            torch.testing.assert_close(together[:, start:end], alone, rtol=1e-4, atol=1e-5)


def test_a_norm_carries_what_sequence_parallelism_reads():
    from megatron_seams.runtime.backends.norm import LocalNorm

    for normalization, kind, count in (
        ("RMSNorm", torch.nn.RMSNorm, 1),
        ("LayerNorm", torch.nn.LayerNorm, 2),
    ):
        made = config(normalization=normalization, params_dtype=torch.bfloat16)
        made.sequence_parallel = True
        norm = LocalNorm(config=made, hidden_size=32, eps=1e-3)
        parameters = list(norm.parameters())
        assert (type(norm), len(parameters), norm.eps) == (kind, count, 1e-3)
        assert all(parameter.sequence_parallel is True for parameter in parameters)
        assert all(parameter.dtype is torch.bfloat16 for parameter in parameters)
    with pytest.raises(ValueError, match="BatchNorm"):
        LocalNorm(config=config(normalization="BatchNorm"), hidden_size=32)
    with pytest.raises(ValueError, match="zero_centered"):
        LocalNorm(config=config(layernorm_zero_centered_gamma=True), hidden_size=32)


def test_a_checkpoint_names_its_norms_as_transformer_engine_does(plan_of):
    from megatron_seams.runtime.model.build import build_model

    model = build_model(plan_of("*-"))
    keys = {getattr(part, "key", name) for name, part in model.sharded_state_dict().items()}
    assert {
        "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.1.mlp.linear_fc1.layer_norm_weight",
        "decoder.final_norm.weight",
    } <= keys


def test_the_providers_are_what_the_hooks_promise():
    from megatron_seams.runtime.backends.local import LocalProvider

    provider = LocalProvider()
    for name in ("column_parallel_linear", "row_parallel_linear", "core_attention"):
        assert isinstance(getattr(provider, name)(), type)
    norm = provider.layer_norm(rms_norm=True)
    assert isinstance(norm(config=config(), hidden_size=8, eps=1e-5), torch.nn.RMSNorm)


def test_torch_answers_cuda_requests_with_the_cpu_only_inside_the_block():
    import torch.distributed as dist

    from megatron_seams.runtime.cpu.world import cuda_on_cpu

    # The module's own block is open: a second one inside it must leave it as it was.
    with cuda_on_cpu():
        assert torch.zeros(2, device="cuda").device.type == "cpu"
    assert torch.arange(2, device="cuda:0").device.type == "cpu"
    assert torch.ones(2).to("cuda").device.type == "cpu"
    assert torch.ones(2).to(device=torch.device("cuda", 0), dtype=torch.int).device.type == "cpu"
    assert torch.ones(2).cuda().device.type == "cpu"
    assert torch.cuda.current_device() == torch.device("cpu")
    assert not torch.cuda.is_available()
    torch.cuda.synchronize()
    assert dist.get_world_size() == 1


def test_a_second_world_in_one_process_is_refused():
    from megatron_seams.runtime.cpu.world import gloo_world

    with pytest.raises(RuntimeError, match="already"), gloo_world():
        pass
