"""The smoke run: a plan's model at toy width, trained for a few steps on a CPU."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from megatron_seams.base.wording import counted
from megatron_seams.planning.plan import Plan
from megatron_seams.recipes.pipeline import written_stages
from megatron_seams.recipes.recipe import Parallelism, Smoke
from megatron_seams.runtime.backends.backend import ModelBackend, choose_backend
from megatron_seams.runtime.cpu.world import cpu_world
from megatron_seams.runtime.model.build import build_model
from megatron_seams.runtime.model.next_token import NextTokenBatch
from megatron_seams.runtime.smoke.bound import draw_independent
from megatron_seams.runtime.smoke.curve import plot
from megatron_seams.runtime.smoke.probe import refuse_used, save_proof
from megatron_seams.runtime.smoke.text import (
    Text,
    draw_windows,
    read_text,
    spread_windows,
    unigram_entropy,
)
from megatron_seams.runtime.smoke.toy import Replaced, toy_settings

if TYPE_CHECKING:
    from megatron_seams.runtime.compat import HybridModel

#: Windows of the held-back text that the final loss is taken over.
_HELD_BACK_WINDOWS: Final = 256
#: Windows of independent bytes, on which a loss below the bound shows a leak.
_INDEPENDENT_WINDOWS: Final = 64
#: The seed of these bytes, counted from the run's.
_APART: Final = 1_000_003
#: Windows that the model takes at a time.
_BATCH: Final = 32
#: Windows of the held-back text that a proof keeps with their losses and logits.
_PROBE_WINDOWS: Final = 4
#: The bound of the gradient's norm, as in every published recipe.
_CLIP: Final = 1.0
#: Share of the steps over which the learning rate rises; then it falls as a cosine to a tenth.
_WARM_UP: Final = 0.05


@attrs.frozen(kw_only=True)
class Keep:
    """Where a run saves its proof, for a later graduation.

    Attributes:
        folder: Does not exist yet, or is empty.
        receipt: The text of the plan's receipt.
    """

    folder: Path
    receipt: str


@attrs.frozen(kw_only=True)
class SmokeReport:
    """The figures of a smoke run.

    Attributes:
        parameters: The number of the toy model's parameters.
        losses: The training loss of each step, nats per byte.
        held_back_loss: The mean loss on text that no step saw, nats per byte.
        unigram_entropy: The lowest loss there of a model that ignores the context, nats per byte.
        independent_loss: The mean loss on bytes drawn independently of one another, nats per byte.
        causal_bound: The lowest loss there of a causal model, nats per byte.
        tokens_per_second: The mean speed of the training steps.
        seconds: The training steps' wall time.
    """

    parameters: int
    losses: tuple[float, ...]
    held_back_loss: float
    unigram_entropy: float
    independent_loss: float
    causal_bound: float
    tokens_per_second: float
    seconds: float

    @property
    def learned(self) -> bool:
        """Whether the model uses the context."""
        return self.held_back_loss < self.unigram_entropy

    @property
    def leaks(self) -> bool:
        """Whether the model sees the bytes that it predicts."""
        return self.independent_loss < self.causal_bound


def run_smoke(
    plan: Plan,
    smoke: Smoke,
    data: Path | None,
    steps: int | None,
    console: Console,
    keep: Keep | None = None,
) -> SmokeReport:
    """Train the plan's model at toy width, in this process, and print its losses.

    Every layer of the plan is there and built by its own provider; only the widths are small, and
    neither stages nor ranks divide the model.

    Args:
        plan: The model.
        smoke: The recipe's ``[smoke]``.
        data: A text file; None for the standard library's sources.
        steps: The number of steps; the recipe's if None.
        console: Where progress and result are shown.
        keep: Where to save the trained model and its probe; None saves nothing.

    Returns:
        The losses and the speed.

    Raises:
        Refusal: The model cannot be built here.
        DataInvalid: The text is too short.
        CannotRunHere: ``keep`` names a folder that is not empty.
    """
    if keep is not None:
        refuse_used(keep.folder)
    smoke = smoke if steps is None else attrs.evolve(smoke, steps=steps)
    text = read_text(data, sequence=smoke.sequence)
    with one_thread(), cpu_world(seed=smoke.seed):
        settings = toy_settings(plan, smoke)
        backend = choose_backend()
        for line in _replaced(plan, settings, backend):
            console.print(line, markup=False)
        model = build_model(on_one_rank(plan), settings=settings, backend=backend)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        console.print(
            f"{plan.name}: {counted(len(model.decoder.layers), 'layer')} at toy width, "
            f"{parameters:,} parameters; "
            f"{counted(smoke.steps, 'step')} of {smoke.batch} x {smoke.sequence} "
            f"bytes of {text.source}",
            markup=False,
        )
        started = time.perf_counter()
        losses = tuple(_train(model, text, smoke, console))
        seconds = time.perf_counter() - started
        length = smoke.sequence + 1
        held_back = spread_windows(text.held_back, count=_HELD_BACK_WINDOWS, length=length)
        independent = draw_independent(
            text.training,
            count=_INDEPENDENT_WINDOWS,
            length=length,
            # Another stream than that of the training windows, which tells nothing of these bytes.
            generator=torch.Generator().manual_seed(smoke.seed + _APART),
        )
        report = SmokeReport(
            parameters=parameters,
            losses=losses,
            held_back_loss=_evaluate(model, held_back),
            unigram_entropy=unigram_entropy(text.held_back),
            independent_loss=_evaluate(model, independent.tokens),
            causal_bound=independent.bound,
            tokens_per_second=smoke.steps * smoke.batch * smoke.sequence / seconds,
            seconds=seconds,
        )
        if keep is not None:
            tokens = spread_windows(text.held_back, count=_PROBE_WINDOWS, length=length)
            save_proof(keep.folder, model, tokens, settings=settings, receipt=keep.receipt)
    show_report(report, plan, console)
    return report


def _replaced(plan: Plan, settings: Mapping[str, Any], backend: ModelBackend) -> Iterator[str]:
    """A line for each way in which the model that is trained differs from the recipe's."""
    yield from Replaced.between(plan.megatron, settings).lines("toy width")
    kernels = {key: value for key, value in backend.settings().items() if key in settings}
    asked = {key: settings[key] for key in kernels}
    yield from Replaced.between(asked, kernels).lines(f"backend {backend.name!r}")
    if plan.parallelism != Parallelism() or len(plan.pattern.stages) > 1:
        yield "one rank replaces the recipe's ranks and stages"


def on_one_rank(plan: Plan) -> Plan:
    """The plan with neither ranks nor stages, which a single process could not all build."""
    pattern = attrs.evolve(plan.pattern, stages=(plan.pattern.depth,))
    layers = tuple(attrs.evolve(layer, stage=0, rank=0) for layer in plan.layers)
    return attrs.evolve(
        plan,
        layers=layers,
        pattern=pattern,
        pipeline=written_stages(pattern),
        parallelism=Parallelism(),
    )


def show_report(report: SmokeReport, plan: Plan, console: Console) -> None:
    """Print the loss curve, the figures, and the next step where a layer sees the future."""
    verdict = "below" if report.learned else "NOT below"
    console.print("training loss, nats per byte", style="bold")
    console.print(plot(report.losses), markup=False)
    console.print(
        f"held-back loss {report.held_back_loss:.3f} | unigram entropy "
        f"{report.unigram_entropy:.3f} nats per byte: {verdict} what a model without context "
        "can reach",
        markup=False,
        style="bold green" if report.learned else "bold red",
    )
    console.print(
        f"loss on independent bytes {report.independent_loss:.3f} | no causal model below "
        f"{report.causal_bound:.3f} nats per byte: "
        + ("a layer SEES the bytes that it predicts" if report.leaks else "no leak"),
        markup=False,
        style="bold red" if report.leaks else None,
    )
    if report.leaks:
        names = sorted(seam.name for seam in plan.seams)
        kits = " and ".join(f"`pytest --seam {name}`" for name in names)
        console.print(
            f"next: {kits}, whose rule 'causal' finds the seam (registry docs conformance)"
            if names
            else "next: compare with another Megatron; the plan has native layers alone",
            markup=False,
        )
    console.print(
        f"{counted(len(report.losses), 'step')} in {report.seconds:.1f} s, "
        f"{report.tokens_per_second:,.0f} tokens/s",
        markup=False,
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread.

    Matrices of this size gain little from a second one, lose much where other work shares the
    cores (a thread that waits at a barrier spins), and the figures of one thread do not depend on
    the machine's number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(model: "HybridModel", text: Text, smoke: Smoke, console: Console) -> Iterator[float]:
    """Take the steps; yield the loss of each."""
    optimizer = torch.optim.Adam(model.parameters(), lr=smoke.learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _share_of_peak(step, smoke.steps)
    )
    generator = torch.Generator().manual_seed(smoke.seed)
    progress = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Without a terminal, a bar is a line of noise in a log.
        disable=not console.is_terminal,
    )
    model.train()
    with progress:
        bar = progress.add_task("", total=smoke.steps, loss=math.nan, speed=0.0)
        started = time.perf_counter()
        for step in range(1, smoke.steps + 1):
            tokens = draw_windows(
                text.training, batch=smoke.batch, length=smoke.sequence + 1, generator=generator
            )
            loss = _loss(model, tokens)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            optimizer.step()
            schedule.step()
            value = float(loss.detach())
            speed = step * smoke.batch * smoke.sequence / (time.perf_counter() - started)
            progress.update(bar, advance=1, loss=value, speed=speed)
            yield value


def _share_of_peak(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a tenth."""
    rising = max(1, round(_WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return 0.55 + 0.45 * math.cos(math.pi * done)


def _loss(model: "HybridModel", tokens: Tensor) -> Tensor:
    """The mean loss of predicting each next byte; tokens are [b, s + 1]."""
    losses: Tensor = model(**NextTokenBatch.of(tokens).training())
    return losses.mean()


@torch.no_grad()
def _evaluate(model: "HybridModel", windows: Tensor) -> float:
    """The mean loss over windows [n, s + 1], nats per byte."""
    model.eval()
    total = 0.0
    for start in range(0, len(windows), _BATCH):
        batch = windows[start : start + _BATCH]
        total += float(_loss(model, batch)) * len(batch)
    return total / len(windows)
