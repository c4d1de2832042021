"""The mixer inside upstream's own MambaLayer, on a CPU, in a world of one process."""

import functools
import importlib.resources
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from packaging.version import Version
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron_seams.errors import OptionsInvalid, Unsupported
from megatron_seams.hookspecs import LayerContext
from megatron_seams.runtime.cpu.world import gloo_world
from megatron_seams.runtime.plugins import load_plugins
from megatron_seams.seams.manifest import parse_manifest
from megatron_seams.seams.seam import Seam
from megatron_seams_m2rnn.layer.mixer import M2RNNMixer, skip
from megatron_seams_m2rnn.ops.operator import m2rnn
from megatron_seams_m2rnn.options import Options
from megatron_seams_m2rnn.plugin import recurrent_layer

pytestmark = pytest.mark.megatron

HIDDEN = 32
#: Since 0.18 the stack names its layers.
NAME = {"name": "decoder.layers.0"} if "name" in signature(MambaLayer.__init__).parameters else {}
OPTIONS = Options(K=8, V=4, heads=6, v_heads=3, f_heads=2)


@pytest.fixture(scope="module")
def groups() -> Iterator[Any]:
    """Only the groups that the mixer may ask for: it depends on no pipeline and no expert group."""
    with gloo_world() as pg_collection:
        yield SimpleNamespace(tp=pg_collection.tp, cp=pg_collection.cp)


def configuration(**settings: Any) -> TransformerConfig:
    return TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=4,
        normalization="RMSNorm",
        hidden_dropout=0.0,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        **settings,
    )


def mixer_spec(groups: Any, config: TransformerConfig, options: Options = OPTIONS) -> ModuleSpec:
    """The hook's mixer for a model."""
    context = LayerContext(
        config=config,
        options=options,
        megatron_version=Version("0.19.2"),
        backend=LocalSpecProvider(),
        pg_collection=groups,
        slot="mamba_layer",
        layer_numbers=(1,),
    )
    return recurrent_layer(context)


def layer(
    groups: Any, *, options: Options = OPTIONS, number: int = 1, **settings: Any
) -> MambaLayer:
    """Build the layer as upstream's stack does."""
    torch.manual_seed(0)
    config = configuration(**settings)
    submodules = MambaLayerSubmodules(
        norm=WrappedTorchNorm,
        mixer=mixer_spec(groups, config, options),
        mamba_bda=get_bias_dropout_add,
    )
    return build_module(
        ModuleSpec(module=MambaLayer, submodules=submodules),
        config=config,
        layer_number=number,
        pg_collection=groups,
        pp_layer_offset=number - 1,
        **NAME,
    )


def packed(*bounds: int, padded: tuple[int, ...] | None = None) -> PackedSeqParams:
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=torch.tensor(bounds, dtype=torch.int32),
        cu_seqlens_q_padded=None if padded is None else torch.tensor(padded, dtype=torch.int32),
    )


def test_the_layer_learns_to_remember_what_only_the_state_can_carry(groups: Any) -> None:
    model = layer(groups)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.5e-2)
    losses = []
    for _ in range(90):
        # Signs at the first token, marked in the last channel, and noise after it.
        signs = torch.randn(32, 4).sign()
        hidden = 0.3 * torch.randn(7, 32, HIDDEN)
        hidden[0, :, :4], hidden[1:, :, :4] = 2 * signs, 0.0
        hidden[0, :, -1], hidden[1:, :, -1] = 4.0, 0.0
        # From the fifth token on they are out of the convolution's reach.
        loss = ((model(hidden) - hidden)[4:, :, :4] - signs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.95
    assert losses[-1] < 0.5
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_packed_documents_are_bitwise_isolated_forward_and_backward(groups: Any) -> None:
    model = layer(groups)
    hidden = torch.randn(12, 1, HIDDEN, requires_grad=True)
    other = hidden.detach().clone()
    other[:7] = torch.randn(7, 1, HIDDEN)
    boundaries = packed(0, 1, 7, 12)
    out = model(hidden, packed_seq_params=boundaries)
    changed = model(other, packed_seq_params=boundaries)
    assert not torch.equal(out[:7], changed[:7])
    assert torch.equal(out[7:], changed[7:])
    (gradient,) = torch.autograd.grad(out[7:].square().sum(), hidden)
    assert gradient[7:].all()
    assert not gradient[:7].any()


def test_each_packed_document_comes_out_as_if_it_were_alone(groups: Any) -> None:
    model = layer(groups)
    hidden = torch.randn(12, 1, HIDDEN)
    alone = torch.cat([model(part) for part in torch.split(hidden, [1, 6, 5])])
    assert torch.allclose(model(hidden, packed_seq_params=packed(0, 1, 7, 12)), alone, atol=1e-6)
    assert not torch.allclose(model(hidden), alone, atol=1e-3)


def test_padded_boundaries_say_where_the_tokens_lie(groups: Any) -> None:
    model = layer(groups)
    hidden = torch.randn(12, 1, HIDDEN)
    expected = model(hidden, packed_seq_params=packed(0, 4, 8, 12))
    found = model(hidden, packed_seq_params=packed(0, 3, 6, padded=(0, 4, 8)))
    assert torch.equal(found, expected)


def test_a_bfloat16_model_keeps_its_gates_and_states_in_float32(
    groups: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, W: Tensor, f: Tensor, *h0: Any, **kw: Any) -> Any:
        seen.append({"q": q, "f": f})
        return m2rnn(q, k, v, W, f, *h0, **kw)

    monkeypatch.setattr("megatron_seams_m2rnn.layer.mixer.m2rnn", spy)
    # Megatron's Float16Module casts every parameter, A_log and dt_bias too.
    model = layer(groups, bf16=True, params_dtype=torch.bfloat16).bfloat16()
    out = model(torch.randn(10, 2, HIDDEN, dtype=torch.bfloat16))
    out.sum().backward()
    assert out.dtype is torch.bfloat16
    assert seen[0]["q"].dtype is torch.bfloat16
    assert seen[0]["f"].dtype is torch.float32


def test_the_clip_of_the_options_reaches_the_operator(groups: Any) -> None:
    hidden = torch.randn(10, 2, HIDDEN)
    gradients = []
    for clip in (1e-4, 1.0, float("inf")):
        model = layer(groups, options=Options(K=8, V=4, heads=6, state_gradient_clip=clip))
        model(100 * hidden).sum().backward()
        gradients.append(model.mixer.W.grad)
    assert not torch.allclose(gradients[0], gradients[2], rtol=1e-3)
    assert model.mixer.clip is None


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_give_the_same_gradients(groups: Any, reentrant: bool) -> None:
    model = layer(groups)
    run = functools.partial(model, packed_seq_params=packed(0, 1, 7, 12))
    again = functools.partial(checkpoint, run, use_reentrant=reentrant)
    hidden = torch.randn(12, 1, HIDDEN, requires_grad=True)
    gradients = []
    for forward in (run, again):
        model.zero_grad()
        hidden.grad = None
        forward(hidden).square().sum().backward()
        gradients.append([x.grad for x in (hidden, *model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_parameters_start_as_the_paper_says_wherever_the_layer_is(groups: Any) -> None:
    mixer = layer(groups).mixer
    assert torch.equal(mixer.W, torch.eye(4).expand(6, 4, 4))
    assert torch.equal(mixer.D, torch.ones(24))
    assert mixer.A_log.shape == mixer.dt_bias.shape == (2,)
    assert mixer.conv_weight.shape == (8 + 8 + 12, 4)
    assert mixer.in_proj.weight.shape == (28 + 2 + 24, HIDDEN)
    assert mixer.out_proj.weight.shape == (HIDDEN, 24)
    assert not [
        name for name, _ in mixer.named_parameters() if "bias" in name.replace("dt_bias", "")
    ]
    seventh = layer(groups, number=7).mixer
    for name, parameter in mixer.named_parameters():
        assert torch.equal(parameter, seventh.get_parameter(name)), name


def test_the_skip_gives_each_value_head_to_the_state_heads_that_it_serves(groups: Any) -> None:
    mixer = layer(groups).mixer
    with torch.no_grad():
        mixer.D.copy_(torch.arange(24.0))
    v = torch.randn(1, 2, 3, 4)
    expected = torch.stack([v[:, :, n // 2] * mixer.D[4 * n : 4 * n + 4] for n in range(6)], dim=2)
    assert torch.equal(skip(v, mixer.D), expected)


def test_the_sharded_state_names_every_part_of_a_fused_parameter(groups: Any) -> None:
    model = layer(groups)
    state = model.sharded_state_dict(prefix="decoder.")
    apply_factories(state)
    parts = [part for part in nested_values(state) if isinstance(part, ShardedTensor)]
    shapes = {part.key: tuple(part.global_shape) for part in parts}
    expected = {f"decoder.{name}": tuple(p.shape) for name, p in model.named_parameters()}
    del expected["decoder.mixer.in_proj.weight"], expected["decoder.mixer.conv_weight"]
    for name, rows in {"q": 8, "k": 8, "v": 12, "f": 2, "g": 24}.items():
        expected[f"decoder.mixer.in_proj.weight.{name}"] = (rows, HIDDEN)
        if name in "qkv":
            expected[f"decoder.mixer.conv_weight.{name}"] = (rows, 4)
    assert shapes == expected


def test_a_loaded_state_gives_the_same_numbers(groups: Any) -> None:
    model, other = layer(groups), layer(groups)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    hidden = torch.randn(10, 2, HIDDEN)
    assert not torch.equal(model(hidden), other(hidden))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(hidden), other(hidden))


def test_packed_sequences_without_boundaries_are_refused(groups: Any) -> None:
    with pytest.raises(Unsupported, match="cu_seqlens_q"):
        layer(groups)(torch.randn(4, 1, HIDDEN), packed_seq_params=PackedSeqParams())


def test_packed_rows_in_a_batch_are_refused(groups: Any) -> None:
    with pytest.raises(Unsupported, match="batch of 2"):
        layer(groups)(torch.randn(4, 2, HIDDEN), packed_seq_params=packed(0, 4))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (Options(heads=6), "the state, with 6 heads"),
        (Options(heads=8, q_heads=8, v_heads=1, V=2), "v, with 1 heads.*has 2 channels to cut"),
        (Options(heads=8, f_heads=2), "f, with 2 heads.*has 2 channels to cut"),
        (Options(heads=12, w_heads=3), "W, with 3 heads.*neither a multiple nor a divisor"),
    ],
)
def test_heads_that_do_not_divide_over_the_ranks_are_refused_before_anything_is_built(
    groups: Any, options: Options, why: str
) -> None:
    four = SimpleNamespace(**{**vars(groups), "tp": SimpleNamespace(size=lambda: 4)})
    with pytest.raises(OptionsInvalid, match=f"(?s)SEAM-B04.*tensor-parallel 4.*{why}"):
        mixer_spec(four, configuration(), options)


def test_heads_that_do_not_fit_the_width_are_refused_before_anything_is_built(groups: Any) -> None:
    with pytest.raises(OptionsInvalid, match="does not divide the 5 heads"):
        mixer_spec(groups, configuration(), Options(v_heads=5))  # 4 heads at this width


def test_the_plugin_is_what_its_manifest_declares(groups: Any) -> None:
    package = importlib.resources.files("megatron_seams_m2rnn")
    manifest, _ = parse_manifest(package.joinpath("seam.toml").read_bytes(), file="seam.toml")
    assert manifest is not None
    seam = Seam(
        manifest=manifest,
        package="megatron_seams_m2rnn",
        distribution="megatron-seams-m2rnn",
        version="0.1.0",
        directory=Path(str(package)),
        manifest_digest="",
    )
    loaded = load_plugins([seam], {"m2rnn": {"heads": 8, "K": 4}})
    options = loaded.options["m2rnn"]
    assert options == Options(heads=8, K=4)
    context = LayerContext(
        config=configuration(),
        options=options,
        megatron_version=Version("0.19.2"),
        backend=LocalSpecProvider(),
        pg_collection=groups,
        slot="mamba_layer",
        layer_numbers=(1,),
    )
    assert loaded.call(seam, context).module is M2RNNMixer
