"""CUDA graphs, by each of upstream's ways: those of native plans unharmed, seams' layers captured.

Gradients of replayed graphs are compared with those of the same weights without graphs.
"""

import gc
from typing import Any

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("gpu")]

#: A model -> how it is spelled; upstream captures no experts that are not padded.
MODELS = {
    "native": "*M-",
    "m2rnn": "*R-",
    "mamba3": "*M-",
    "mamba3 MIMO": "*M-",
    "ngram": "*M-",
    "mla": "+R+-",
}
TOLERANCE = 1e-2  # bfloat16


@pytest.fixture(scope="module")
def gpu():
    from gpu_models import one_gpu

    with one_gpu(for_graphs=True):
        yield


@pytest.fixture(autouse=True)
def no_graphs_left():
    """Upstream keeps graphs, their order and their stream for the whole process."""
    import torch
    from megatron.core import full_cuda_graph
    from megatron.core.transformer import cuda_graphs

    yield
    torch.cuda.synchronize()
    cuda_graphs._set_capture_end()  # a capture that failed leaves it begun
    cuda_graphs.delete_cuda_graphs()
    full_cuda_graph.FullCudaGraphWrapper.cuda_graph["training"] = None
    full_cuda_graph.FullCudaGraphWrapper.result["training"] = None
    full_cuda_graph.FullCudaGraphWrapper.curr_iteration["training"] = 0
    full_cuda_graph.StaticBufferLoader.static_buffers["training"] = []
    torch.cuda.set_stream(torch.cuda.default_stream())
    gc.collect()


def case_of(name):
    import attrs

    from gpu_models import CASES, Case

    if name == "native":
        return Case(pattern=MODELS[name], family=None)
    return attrs.evolve(CASES[name], pattern=MODELS[name])


def plan_of(name, **settings):
    from gpu_models import PRECISIONS

    return case_of(name).plan(**PRECISIONS["bf16"], **settings)


def wrapped(model: Any, stream: Any = None) -> Any:
    """The model as upstream's trainer has it, with gradients in buffers."""
    import torch
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    # As upstream's trainer: what adds up gradients would run in the default stream otherwise, which
    # no capture may wait for.
    stream = stream or torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        model = DistributedDataParallel(
            config=model.config, ddp_config=DistributedDataParallelConfig(), module=model
        )
    torch.cuda.current_stream().wait_stream(stream)
    return model


def step(model: Any) -> tuple[float, dict[str, Any]]:
    """The loss and every gradient in the buffers, of one step."""
    from megatron.core.transformer.cuda_graphs import set_current_microbatch

    from gpu_models import loss_of

    model.zero_grad_buffer()
    set_current_microbatch(model, 0)
    loss = loss_of(model)
    loss.backward()
    model.finish_grad_sync()
    return float(loss), {n: p.main_grad.float() for n, p in model.module.named_parameters()}


def without_graphs(name: str) -> tuple[Any, float, dict[str, Any]]:
    """The weights of a model without graphs, and its loss and gradients."""
    from gpu_models import build

    model = wrapped(build(plan_of(name)))
    loss, found = step(model)
    return model.module.state_dict(), loss, found


def report(way: str, name: str, layers: str, found: Any, wanted: Any) -> None:
    from gpu_models import difference

    worst = difference(found[1], wanted[1])
    print(
        f"{way} {name}: {layers}; loss differs by {abs(found[0] - wanted[0]):.1e}, gradients by "
        f"{worst:.1e} of the largest"
    )
    assert abs(found[0] - wanted[0]) <= 1e-4 * wanted[0]
    assert worst <= TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_upstreams_local_graphs(name):
    from megatron.core.transformer.cuda_graphs import create_cudagraphs

    from gpu_models import build

    weights, *wanted = without_graphs(name)
    model = wrapped(build(plan_of(name, cuda_graph_impl="local"), weights))
    report("local, recorded", name, "eager", step(model), wanted)
    create_cudagraphs()  # as upstream's schedules do at the end of the first iteration
    found = step(model)
    runners = [layer.cudagraph_manager.cudagraph_runners for layer in model.module.decoder.layers]
    captured = sum(bool(each) and each[0].fwd_graph is not None for each in runners)
    report("local, replayed", name, f"{captured} of {len(runners)} layers captured", found, wanted)
    assert captured == len(runners)


@pytest.mark.parametrize("name", MODELS)
def test_graphs_of_transformer_engine(name):
    from megatron.core import num_microbatches_calculator as calculator
    from megatron.core.transformer.cuda_graphs import TECudaGraphHelper

    from gpu_models import BATCH, LENGTH, build

    calculator.unset_num_microbatches_calculator()
    calculator.init_num_microbatches_calculator(
        rank=0,
        rampup_batch_size=None,
        global_batch_size=BATCH,
        micro_batch_size=BATCH,
        data_parallel_size=1,
    )
    weights, *wanted = without_graphs(name)
    model = wrapped(build(plan_of(name, cuda_graph_impl="transformer_engine"), weights))
    report("transformer_engine, before", name, "eager", step(model), wanted)
    helper = TECudaGraphHelper([model], model.config, LENGTH, BATCH)
    helper.create_cudagraphs()
    layers = model.module.decoder.layers
    captured = sum(bool(layer.cuda_graphs) for layer in layers)
    found = step(model)
    report(
        "transformer_engine, replayed",
        name,
        f"{captured} of {len(layers)} layers captured",
        found,
        wanted,
    )
    assert captured == len(layers)
    helper.delete_cuda_graphs()


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_of_the_whole_iteration(name):
    import torch
    from megatron.core.full_cuda_graph import FullCudaGraphWrapper, get_shared_capture_stream

    from gpu_models import batch, build

    weights, *wanted = without_graphs(name)
    ids, positions = batch()

    def forward_backward(*, model, data_iterator, **of):
        del of
        given = next(data_iterator[0])
        ids = given["ids"]
        loss = model(ids, given["positions"], None, labels=ids).float().mean()
        loss.backward()
        return loss

    # The last step has other ids than the one that was captured, in the same buffers.
    steps = [ids.flip(1)] * 3 + [ids]
    plan = plan_of(name, cuda_graph_impl="full_iteration")
    model = wrapped(build(plan, weights), get_shared_capture_stream())
    whole = FullCudaGraphWrapper(forward_backward, cuda_graph_warmup_steps=2)
    for these in steps:
        model.zero_grad_buffer()
        loss = whole(
            model=model,
            data_iterator=iter([{"ids": these, "positions": positions.contiguous()}]),
            num_microbatches=1,
            seq_length=ids.shape[1],
            forward_only=False,
        )
    torch.cuda.synchronize()
    assert FullCudaGraphWrapper.cuda_graph["training"] is not None
    found = {n: p.main_grad.float() for n, p in model.module.named_parameters()}
    report("full_iteration, replayed", name, "captured", (float(loss), found), wanted)


@pytest.mark.parametrize("way", ["local", "transformer_engine", "full_iteration"])
def test_engram_is_refused_with_any(way):
    import attrs

    from gpu_models import CASES, PRECISIONS, build
    from megatron_seams.errors import Refusal, SeamsError

    case = attrs.evolve(CASES["engram"], pattern="*M-", megatron={})
    with pytest.raises((SeamsError, Refusal), match="no hook runs") as refused:
        build(case.plan(**PRECISIONS["bf16"], cuda_graph_impl=way))
    print(refused.value)
