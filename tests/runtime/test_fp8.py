"""fp8 wants multiples of 16 on every rank; a linear of a seam with other widths is refused."""

import types

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("world")]


def fp8(**settings):
    """A configuration, as far as it concerns fp8."""
    return types.SimpleNamespace(
        **{"fp8": "hybrid", "first_last_layers_bf16": False, "num_layers": 9, **settings}
    )


@pytest.fixture(scope="module")
def layer():
    import torch
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=1, hidden_size=32, num_attention_heads=4, use_cpu_initialization=True
    )

    def linear(outputs):
        return ColumnParallelLinear(
            32, outputs, config=config, init_method=config.init_method, bias=False
        )

    return torch.nn.ModuleDict({"in_proj": linear(44), "out_proj": linear(48)})


def test_a_linear_whose_width_does_not_fit_is_named_with_its_layers(layer):
    from megatron_seams.runtime.model.fp8 import fp8_faults

    (fault,) = fp8_faults(fp8(), {3: layer, 5: layer})
    assert fault.positions == (3, 5)
    assert "in_proj" in fault.asked
    assert "44 outputs and 32 inputs" in fault.found


def test_without_fp8_any_width_is_taken(layer):
    from megatron_seams.runtime.model.fp8 import fp8_faults

    assert list(fp8_faults(fp8(fp8=None), {3: layer})) == []


def test_layers_that_upstream_leaves_in_bfloat16_are_of_any_width(layer):
    from megatron_seams.runtime.model.fp8 import fp8_faults

    config = fp8(
        first_last_layers_bf16=True, num_layers_at_start_in_bf16=1, num_layers_at_end_in_bf16=2
    )
    (fault,) = fp8_faults(config, dict.fromkeys((1, 2, 7, 8, 9), layer))
    assert fault.positions == (2, 7)


def test_every_matrix_of_transformer_engines_modules_is_looked_at():
    import torch

    from megatron_seams.runtime.model.fp8 import fp8_faults

    fused = type("FusedFeedForward", (torch.nn.Module,), {"__module__": "transformer_engine.x"})()
    fused.fc1_weight = torch.nn.Parameter(torch.empty(48, 32))
    fused.fc2_weight = torch.nn.Parameter(torch.empty(32, 40))
    fused.layer_norm_weight = torch.nn.Parameter(torch.empty(7))
    own = torch.nn.Linear(3, 5)  # torch's, which fp8 does not run
    layer = torch.nn.ModuleDict({"mlp": fused, "router": own})
    (fault,) = fp8_faults(fp8(), {2: layer})
    assert "mlp.fc2_weight" in fault.asked
    assert "32 outputs and 40 inputs" in fault.found
