"""One rank of test_ranks.py: upstream's own pipeline schedule over a model with seams."""

import sys
from pathlib import Path

import torch
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

from conftest import plan_of as plan_of_fixture
from megatron_seams.recipe import Parallelism
from megatron_seams.runtime.build import build_model
from megatron_seams.runtime.cpu import cpu_world

LENGTH = 8


def main() -> None:
    spread = Parallelism(pipeline_parallel=2)
    plan = next(plan_of_fixture._get_wrapped_function()())(
        "R*|KR",
        seams=("whole", "rider", "bonus"),
        tokens={"K": "kda", "R": "recurrent"},
        features=("ngram",),
        parallelism=spread,
    )
    with cpu_world(spread) as groups:
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
        layers = ", ".join(
            f"{type(one).__name__} {one.layer_number}" for one in model.decoder.layers
        )
        none = [name for name, weight in model.named_parameters() if weight.grad is None]
        has = any(name.startswith("embedding.bonus") for name, _ in model.named_parameters())
        keys = {getattr(part, "key", "") for part in model.sharded_state_dict().values()}
        mixer = sorted(key for key in keys if key.endswith("mixer.out.weight"))
        said = f"{layers}; embedding.bonus {has}; without gradient {none}; {mixer}"
        (Path(sys.argv[1]) / str(stage)).write_text(said, encoding="utf-8")


if __name__ == "__main__":
    main()
