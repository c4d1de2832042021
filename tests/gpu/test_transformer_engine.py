"""Seams in layers of Transformer Engine: recompute and offload equal to none; fp8, or a refusal."""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.usefixtures("gpu")]

RECOMPUTE = {
    "full": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "moe"]},
}
FP8 = ("tensorwise", "delayed")
LAYERS = ("m2rnn", "mamba3", "mamba3 MIMO", "mla")
FEATURES = ("ngram", "engram")


@pytest.fixture(scope="module")
def gpu():
    from gpu_models import one_gpu

    with one_gpu():
        yield


@pytest.mark.parametrize("seam", LAYERS + FEATURES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recompute_gives_the_gradients_of_none(seam, precision):
    from gpu_models import CASES, PRECISIONS, build, difference, gradients
    from megatron_seams.errors import Refusal, SeamsError

    case, kind = CASES[seam], PRECISIONS[precision]
    model = build(case.plan(**kind))
    plain, wanted = gradients(model)
    assert 0 < plain < 20
    for name, settings in RECOMPUTE.items():
        plan = case.plan(**kind, **settings)
        if (seam, name) == ("engram", "full"):
            with pytest.raises((SeamsError, Refusal), match="without token ids") as refused:
                build(plan)
            print(f"{seam} {precision} {name}: refused, {refused.value}")
            continue
        loss, found = gradients(build(plan, model.state_dict()))
        worst = difference(found, wanted)
        print(
            f"{seam} {precision} {name}: {len(found)} gradients, loss differs by "
            f"{abs(loss - plain):.1e}, gradients by {worst:.1e} of the largest"
        )
        assert abs(loss - plain) <= 1e-6 * plain
        assert worst <= (1e-6 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("seam", LAYERS + FEATURES)
def test_offloaded_activations_give_the_gradients_of_none(seam, monkeypatch):
    """Upstream's fine-grained offload; its hybrid stack does not read ``cpu_offloading``."""
    import attrs
    from megatron.core.pipeline_parallel import fine_grained_activation_offload as offload

    from gpu_models import CASES, PRECISIONS, build, difference, gradients

    # The last attention layer's stay: the next backward pass wants them at once.
    case = attrs.evolve(CASES[seam], pattern=CASES[seam].pattern.replace("*", "***"))
    kind = PRECISIONS["bf16"]
    model = build(case.plan(**kind))
    plain, wanted = gradients(model)
    plan = case.plan(
        **kind,
        fine_grained_activation_offloading=True,
        offload_modules=["qkv_linear", "core_attn", "attn_proj"],
        min_offloaded_tensor_size=1,
    )
    moved = []
    there = offload.ChunkOffloadHandler.offload
    monkeypatch.setattr(
        offload.ChunkOffloadHandler,
        "offload",
        lambda self, x, *of, **by: moved.append(x.nbytes) or there(self, x, *of, **by),
    )
    offload.PipelineOffloadManager.reset_instance()  # it is the process's, and was another model's
    offloading = build(plan, model.state_dict())
    for step in range(3):  # upstream plans in the first what to move
        moved.clear()
        loss, found = gradients(offloading)
        offload.FineGrainedActivationOffloadingInterface.reset()
        worst = difference(found, wanted)
        print(
            f"{seam} step {step}: {len(moved)} tensors, {sum(moved)} bytes offloaded; loss differs "
            f"by {abs(loss - plain):.1e}, gradients by {worst:.1e} of the largest"
        )
        assert moved
        assert abs(loss - plain) <= 1e-6 * plain
        assert worst <= 1e-2


@pytest.mark.parametrize("seam", LAYERS + FEATURES)
@pytest.mark.parametrize("recipe", FP8)
def test_fp8_trains_with_widths_that_fit(seam, recipe):
    import attrs
    import torch

    from gpu_models import CASES, PRECISIONS, build, loss_of

    case = attrs.evolve(CASES[seam], pattern=CASES[seam].pattern.replace("E", "-"))
    plan = case.plan(**PRECISIONS["bf16"], fp8="hybrid", fp8_recipe=recipe)
    model = build(plan)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        assert all(
            bool(torch.isfinite(p.grad).all())
            for p in model.parameters()
            if p.grad is not None and not p.grad.is_sparse
        )
        optimizer.step()
        losses.append(float(loss))
    print(f"{seam} fp8 {recipe}: losses {losses[0]:.3f} to {losses[-1]:.3f}")
    assert losses[-1] < losses[0] - 0.5, losses


@pytest.mark.parametrize(
    ("seam", "options", "linear"),
    [
        ("m2rnn", {"m2rnn": {"heads": 3}}, "in_proj"),
        ("m2rnn", {"m2rnn": {"heads": 5, "V": 8}}, "out_proj"),
        ("mamba3", {"mamba3": {"head-dim": 128}}, "in_proj"),
    ],
)
@pytest.mark.parametrize("recipe", FP8)
def test_fp8_is_refused_at_build_where_a_width_does_not_fit(seam, options, linear, recipe):
    import attrs

    from gpu_models import CASES, PRECISIONS, build
    from megatron_seams.errors import Refusal

    case = attrs.evolve(CASES[seam], options=options)
    plan = case.plan(**PRECISIONS["bf16"], fp8="hybrid", fp8_recipe=recipe)
    with pytest.raises(Refusal, match="multiples of 16") as refused:
        build(plan)
    assert any(linear in fault.asked for fault in refused.value.reasons)
    print(refused.value)


def test_a_layer_that_stays_in_bfloat16_trains_with_any_width():
    import attrs
    import torch

    from gpu_models import CASES, PRECISIONS, build, gradients

    case = attrs.evolve(CASES["m2rnn"], pattern="-*R", options={"m2rnn": {"heads": 3}})
    settings = {"fp8": "hybrid", "fp8_recipe": "tensorwise", "first_last_layers_bf16": True}
    loss, found = gradients(build(case.plan(**PRECISIONS["bf16"], **settings)))
    print(f"m2rnn, last layer in bf16: loss {loss:.3f}, {len(found)} gradients")
    assert 0 < loss < 20
    assert all(bool(torch.isfinite(each).all()) for each in found.values())


@pytest.mark.parametrize("seam", FEATURES)
def test_no_feature_waits_for_the_device(seam):
    """The seam's own work, forward and backward, under torch's alarm for synchronisations."""
    import torch

    from gpu_models import CASES, PRECISIONS, batch, build

    model = build(CASES[seam].plan(**PRECISIONS["bf16"]))
    ids, _ = batch()
    (feature,) = (m for n, m in model.named_modules() if n.split(".")[-1] in ("ngram_hash", seam))
    hidden = torch.randn(128, 2, 512, device="cuda", dtype=torch.bfloat16)
    given = (ids,) if seam == "ngram" else (hidden, ids)
    feature(*given).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        feature(*given).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
