"""What rows on the host cannot be trained with: refused by name, before a step is taken."""

import sys
import types
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plugins.ngram.tests.host_modules import SEAMS, batch, build, loss_of

from megatron_seams.errors import FeatureInvalid


@pytest.mark.parametrize(
    ("optimizer", "found"),
    [
        (lambda given: torch.optim.SGD(given, lr=0.1, momentum=0.9), "momentum"),
        (lambda given: torch.optim.Adagrad(given, lr=0.1), "Adagrad"),
        # They have Adam's numbers, and another rule.
        (lambda given: torch.optim.NAdam(given, lr=0.1), "NAdam"),
        (lambda given: torch.optim.RAdam(given, lr=0.1), "RAdam"),
        (lambda given: torch.optim.Adamax(given, lr=0.1), "Adamax"),
        (lambda given: torch.optim.AdamW(given, lr=0.1, amsgrad=True), "amsgrad"),
        (lambda given: torch.optim.SGD(given, lr=0.1, maximize=True), "maximize"),
    ],
)
def test_another_rule_than_adam_or_gradient_descent_is_refused(optimizer: Any, found: str) -> None:
    host = build("ngram_hash", "host")
    stepped = optimizer(host.parameters())
    loss_of(host, batch(1)).backward()
    with pytest.raises(FeatureInvalid, match=found) as caught:
        stepped.step()
    assert caught.value.key == "seams.ngram_hash.tables"


def test_a_part_of_the_model_that_the_trainer_tells_of_no_optimizer_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = build("engram", "host")
    told = types.ModuleType("megatron.training.global_vars")
    monkeypatch.setitem(sys.modules, told.__name__, told)
    told._GLOBAL_ARGS = SimpleNamespace()  # type: ignore[attr-defined]  # as upstream has it
    loss_of(host, batch(1))  # a loop of its own beside upstream's arguments
    host.tables.beside[0].main_grad = torch.zeros(1)  # as upstream's wrapper does
    with pytest.raises(FeatureInvalid, match="virtual stages") as caught:
        loss_of(host, batch(1))
    assert caught.value.code == "SEAM-R11"
    with torch.no_grad():
        loss_of(host, batch(1))


@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"fp16": True}, "fp16"),
        ({"calculate_per_token_loss": True}, "calculate_per_token_loss"),
        ({"cuda_graph_impl": "local"}, "CUDA graph"),
        ({"gtp_weight_remat_size": 2}, "gtp_weight_remat_size"),
    ],
)
def test_what_rows_on_the_host_cannot_be_trained_with_is_refused_at_build(
    seam: str, config: dict[str, Any], found: str
) -> None:
    build(seam, "device", config=config)
    with pytest.raises(FeatureInvalid, match=found) as caught:
        build(seam, "host", config=config)
    assert caught.value.code == "SEAM-R11"
    assert caught.value.key == f"seams.{seam}.tables"


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        ({"use_megatron_fsdp": True}, "--use-megatron-fsdp"),
        ({"use_torch_fsdp2": True}, "--use-torch-fsdp2"),
        ({"optimizer_cuda_graph": True}, "--optimizer-cuda-graph"),
        ({"async_save": True}, "--async-save"),
        ({"ckpt_format": "torch"}, "--ckpt-format"),
        ({"non_persistent_ckpt_type": "global"}, "--non-persistent-ckpt-type"),
    ],
)
def test_what_the_rows_cannot_have_under_upstreams_trainer_is_refused_at_build(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], option: str
) -> None:
    usual = {"use_distributed_optimizer": True, "save": "here", "ckpt_format": "torch_dist"}
    arguments = SimpleNamespace(**usual, non_persistent_ckpt_type=None)
    module = SimpleNamespace(_GLOBAL_ARGS=arguments)
    monkeypatch.setitem(sys.modules, "megatron.training.global_vars", module)
    build("engram", "host")
    vars(arguments).update(asked)
    build("engram", "device")
    with pytest.raises(FeatureInvalid, match=option) as caught:
        build("engram", "host")
    assert caught.value.code == "SEAM-R11"
    assert option in caught.value.next
    if "ckpt_format" in asked:
        arguments.no_save_optim = True  # as the refusal says
        build("engram", "host")
