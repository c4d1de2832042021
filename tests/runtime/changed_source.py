"""Reads a Megatron that a generator changed, and builds on it where it is read; a program.

    python changed_source.py COUNT SEED

Prints a JSON line for each change. Megatron is imported once; each change whose surface is read is
made in a process forked from there, and a model is built. Its layers are then compared with
what the surface of the changed source says.
"""

import ast
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from megatron.core.models.hybrid import hybrid_block, hybrid_layer_allocation, hybrid_model  # noqa: E402

from megatron_seams.errors import Refusal, SeamsError, SurfaceUnknown  # noqa: E402
from megatron_seams.upstream.locate import importable_megatron  # noqa: E402
from megatron_seams.upstream.source import MegatronSource  # noqa: E402
from megatron_seams.upstream.surface import NativeSurface, read_surface  # noqa: E402
from megatron_seams.upstream.trainer import Outcome, Trainer  # noqa: E402
from source_changes import changes  # noqa: E402

ALLOCATES = {
    node.name
    for node in ast.parse(inspect.getsource(hybrid_layer_allocation)).body
    if isinstance(node, ast.FunctionDef)
}
#: The modules that are changed, and which of their functions.
CHANGED = ((hybrid_block, {"__init__"}), (hybrid_layer_allocation, ALLOCATES))
MOE = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 32}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 12,
    "rope_type": "rope",
}
#: Patterns that need no compiled kernel, and the settings that they need.
PATTERNS = (("*-E*-/*-/*-", MOE), ("-+E+", MOE | MLA), ("*", {}))


def read_changed(module: ModuleType, text: str) -> NativeSurface | str:
    """The surface of the importable Megatron with one module's text changed; else why not."""
    source, _ = importable_megatron()
    assert source is not None
    path = str(Path(str(module.__file__)).relative_to(source.origin))

    def read(name: str) -> bytes | None:
        return text.encode() if name == path else source.read(name)

    try:
        return read_surface(MegatronSource(origin=source.origin, read=read))
    except SurfaceUnknown as unknown:
        return unknown.found


def run_changed(module: ModuleType, text: str) -> None:
    """Put the changed module, and those that took names from it, in the place of the imported."""
    exec(compile(text, str(module.__file__), "exec"), module.__dict__)  # noqa: S102
    if module is hybrid_layer_allocation:
        for other in (hybrid_block, hybrid_model):
            run_changed(other, inspect.getsource(other))


def slot_of(layer: Any) -> str:
    """The slot that builds layers of this make."""
    from megatron.core.transformer.attention import SelfAttention
    from megatron.core.transformer.mlp import MLP
    from megatron.core.transformer.moe.moe_layer import MoELayer
    from megatron.core.transformer.multi_latent_attention import MLASelfAttention

    for kind, slot in ((MLASelfAttention, "mla_layer"), (SelfAttention, "attention_layer")):
        if isinstance(getattr(layer, "self_attention", None), kind):
            return slot
    for kind, slot in ((MoELayer, "moe_layer"), (MLP, "mlp_layer")):
        if isinstance(getattr(layer, "mlp", None), kind):
            return slot
    return type(layer).__name__


def built(surface: NativeSurface) -> Iterator[str]:
    """The outcome of each pattern on the changed Megatron: as read, refused, or a difference."""
    import conftest
    from megatron_seams.runtime.cpu.world import cpu_world
    from megatron_seams.runtime.model.build import build_model

    conftest.surface_in_hand = lambda: surface  # type: ignore[assignment]  # the changed one
    plan = conftest.planner()
    slots = {symbol.symbol: symbol.slot for symbol in surface.symbols}
    with cpu_world():
        for pattern, settings in PATTERNS:
            try:
                model = build_model(plan(pattern, megatron=settings))
            except (Refusal, SeamsError) as error:
                yield f"refused: {error}"
                continue
            except TypeError as error:
                # The surface reports a keyword under a new name, and a layer of today takes none.
                passed = {name for symbol in surface.symbols for name in symbol.keywords}
                unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
                if unexpected is None or unexpected[1] not in passed:
                    raise
                yield f"stopped: no layer takes the {unexpected[1]} that the surface reports"
                continue
            main, *depths = pattern.split("/")
            stacks = [(main, model.decoder.layers)]
            if depths:
                stacks += [
                    (letters, depth.mtp_model_layer.layers)
                    for letters, depth in zip(depths, model.mtp.layers, strict=True)
                ]
            for letters, layers in stacks:
                wanted = [(slots[letter], at) for at, letter in enumerate(letters, start=1)]
                found = [(slot_of(layer), layer.layer_number) for layer in layers]
                different = wanted != found or len({*map(id, layers)}) != len(layers)
                yield f"DIFFERS: {found} for {letters}" if different else "as read"


def remembered(follow: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """A method of the one trainer here that follows the same arguments once."""
    kept: dict[str, Outcome] = {}

    def outcome(self: Trainer, parsed: Mapping[str, Any], **settings: Any) -> Outcome:
        key = repr((sorted(parsed.items()), settings))
        if key not in kept:
            kept[key] = follow(self, parsed, **settings)
        return kept[key]

    return outcome


def main(count: int, seed: int) -> None:
    """Make, read and where they are read run the changes."""
    import conftest

    # Once: every forked process reads the same files, and upstream's trainer, which no change
    # touches, has the same outcome for the same words.
    Trainer.of_arguments = remembered(Trainer.of_arguments)  # type: ignore[method-assign]
    for pattern, settings in PATTERNS:
        conftest.planner()(pattern, megatron=settings)
    for module, functions in CHANGED:
        made = changes(inspect.getsource(module), functions, count // len(CHANGED), seed)
        for what, text in [("nothing", inspect.getsource(module)), *made]:
            surface = read_changed(module, text)
            line = {"module": module.__name__.rpartition(".")[2], "change": what}
            if isinstance(surface, str):
                print(json.dumps({**line, "unknown": surface}), flush=True)
            elif os.fork() == 0:
                try:
                    run_changed(module, text)
                    print(json.dumps({**line, "built": list(built(surface))}), flush=True)
                except BaseException as error:  # noqa: BLE001  # whatever it is goes into the report
                    print(json.dumps({**line, "built": [f"crashed: {error!r}"]}), flush=True)
                os._exit(0)
            else:
                os.wait()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
