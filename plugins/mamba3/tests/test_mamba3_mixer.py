"""The mixer on one rank: the authors' parameters, and its forward written once more from them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from megatron_seams.planning.environment import read_environment
from megatron_seams.runtime.cpu.world import cpu_world
from megatron_seams.runtime.model.build import build_model
from megatron_seams_mamba3.layer.published import from_published
from megatron_seams_mamba3.layer.step import heavy_tail
from seam_support import plan, recipe

sys.path.append(str(Path(__file__).parent))

from authors_block import forward, published  # beside this file, which is on no path

pytestmark = pytest.mark.megatron

WIDTH = 16
SIZES = {"state-size": 8, "head-dim": 8, "groups": 2}
SQUARE = {"N": 8, "P": 8}
FORMS: dict[str, dict[str, Any]] = {
    "SISO": {},
    "SISO, normalised": {"out-norm": True, "decay": "heavy-tail", "rope-fraction": 1.0},
    "MIMO": {"mimo-rank": 3},
    "MIMO, normalised": {"mimo-rank": 3, "out-norm": True},
}


@pytest.fixture(scope="module", autouse=True)
def _world() -> Iterator[None]:
    with cpu_world():
        yield


def built(*, move: float = 0.3, **options: Any) -> Any:
    """The mixer of a model with one layer, its weights moved away from their beginning."""
    asked = recipe(
        "K",
        tokens={"K": "mamba3"},
        megatron={
            "vocab_size": 16,
            "max_sequence_length": 16,
            "hidden_size": WIDTH,
            "num_attention_heads": 2,
        },
        seams={"mamba3": SIZES | options},
    )
    mixer = build_model(plan(asked, read_environment())).decoder.layers[0].mixer
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += move * torch.randn_like(parameter)
    return mixer


@pytest.mark.parametrize("form", FORMS)
def test_the_parameters_are_the_authors_and_so_is_the_output(form: str) -> None:
    options = FORMS[form]
    mixer = built(**options)
    weights = dict(mixer.named_parameters())
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    assert shapes == published(WIDTH, **SQUARE, groups=2, **options)
    u = torch.randn(7, 2, WIDTH)
    out, bias = mixer(u)
    assert bias is None
    given = u.transpose(0, 1)
    expected = forward(given, weights, P=8, backend="reference", groups=2, **options)
    torch.testing.assert_close(out, expected.transpose(0, 1), atol=2e-5, rtol=1e-5)


def test_published_weights_load_on_one_rank_and_are_cut_for_two() -> None:
    mixer = built(**FORMS["MIMO, normalised"])
    weights = {name: torch.randn_like(weight) for name, weight in mixer.named_parameters()}
    loaded = mixer.load_state_dict(from_published(weights, mixer.layout), strict=False)
    assert not loaded.unexpected_keys
    assert all("_extra_state" in key for key in loaded.missing_keys)
    assert all(torch.equal(x, weights[name]) for name, x in mixer.named_parameters())
    two = mixer.options.layout(WIDTH, tp=2)
    halves = [from_published(weights, two, rank=rank) for rank in range(2)]
    for name, whole in weights.items():
        first, second = (half[name] for half in halves)
        if name in ("B_norm.weight", "C_norm.weight"):
            assert torch.equal(first, whole)
        elif name == "out_proj.weight":
            assert torch.equal(torch.cat([first, second], dim=1), whole)
        elif name != "in_proj.weight":
            assert torch.equal(torch.cat([first, second]), whole)
    # z of the first half of the heads, and then x of them.
    assert torch.equal(
        halves[0]["in_proj.weight"][:32], weights["in_proj.weight"][[*range(16), *range(32, 48)]]
    )


def test_weights_of_another_mixer_are_refused_by_name_and_shape() -> None:
    layout = built().layout
    weights = {
        name: torch.zeros(shape) for name, shape in published(WIDTH, **SQUARE, groups=2).items()
    }
    weights["conv1d.weight"], weights["D"] = torch.zeros(4), torch.zeros(5)
    del weights["dt_bias"]
    with pytest.raises(ValueError, match=r"D: found \(5,\).*conv1d.*dt_bias: found None"):
        from_published(weights, layout)


def test_the_other_decay_is_a_line_above_zero_and_a_hyperbola_below() -> None:
    assert torch.allclose(heavy_tail(torch.tensor([-1.0, 0.0, 2.0])), torch.tensor([0.5, 1.0, 3.0]))


def test_the_first_steps_are_those_that_were_asked_for() -> None:
    mixer = built(**{"dt-min": 0.02, "dt-max": 0.05}, move=0.0)
    steps = functional.softplus(mixer.dt_bias)
    assert 0.0199 <= steps.min() < steps.max() <= 0.0501
