"""Two real processes over gloo: two pipeline stages, seams on both, one training step."""

import pytest

from megatron_seams.recipes.recipe import Parallelism
from megatron_seams.runtime.cpu.ranks import on_ranks

pytestmark = [pytest.mark.megatron, pytest.mark.release]

LENGTH = 8


def train_a_step(plan):
    """One stage under upstream's own pipeline schedule; what it is made of and what learned."""
    import torch
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    from megatron_seams.runtime.cpu.world import cpu_world
    from megatron_seams.runtime.model.build import build_model

    with cpu_world(plan.parallelism) as groups:
        stage = groups.pp.rank()
        first, last = stage == 0, stage == 1
        model = build_model(plan, pre_process=first, post_process=last)
        ids = torch.randint(0, 64, (2, LENGTH), generator=torch.Generator().manual_seed(1))
        positions = torch.arange(LENGTH).expand(2, -1)

        def forward(_, module):
            out = module(ids, positions, None, labels=ids if last else None)
            return out, lambda losses: (losses.mean(), {"loss": losses.mean()})

        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=None,
            model=model,
            num_microbatches=2,
            seq_length=LENGTH,
            micro_batch_size=2,
            forward_only=False,
        )
        weights = dict(model.named_parameters())
        keys = {getattr(part, "key", "") for part in model.sharded_state_dict().values()}
        return {
            "layers": [f"{type(one).__name__} {one.layer_number}" for one in model.decoder.layers],
            "feature": any(name.startswith("embedding.bonus") for name in weights),
            "without gradient": [name for name, weight in weights.items() if weight.grad is None],
            "mixers": sorted(key for key in keys if key.endswith("mixer.out.weight")),
        }


def test_two_pipeline_stages_train_with_seams_on_both(plan_of):
    plan = plan_of(
        "R*|KR",
        seams=("whole", "rider", "bonus"),
        tokens={"K": "kda", "R": "recurrent"},
        features=("ngram",),
        parallelism=Parallelism(pipeline_parallel=2),
    )
    first, last = on_ranks(train_a_step, plan)
    assert first["layers"] == ["MambaLayer 1", "TransformerLayer 2"]
    assert last["layers"] == ["WholeLayer 3", "MambaLayer 4"]
    assert (first["feature"], last["feature"]) == (True, False)
    assert first["without gradient"] == last["without gradient"] == []
    # The checkpoint's keys carry the global number on both stages.
    assert "decoder.layers.3.mixer.out.weight" in last["mixers"]
