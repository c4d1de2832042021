"""Builds models on a Megatron whose stack differs by one line; a program of test_build_differs.

    python changed_stack.py CHANGE...

Megatron is imported once. Each change is made in a process forked from there: the source of the
stack's module is run again with the change in it, and only then is our runtime imported.
"""

import inspect
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "seams")]

import torch  # noqa: E402
from megatron.core.models.gpt import gpt_layer_specs  # noqa: E402, F401  # brings most of Megatron

try:
    from megatron.core.models.hybrid import hybrid_block as block
    from megatron.core.models.hybrid import hybrid_model  # noqa: F401
except ImportError:  # the names before 0.18
    from megatron.core.models.mamba import mamba_model  # noqa: F401
    from megatron.core.ssm import mamba_block as block

LOOP = "        for i, layer_type in enumerate(self.layer_type_list):\n"
APPEND = "            self.layers.append(layer)\n"
NUMBER = "layer_number = i + 1 + pp_layer_offset"
LAYERS = "        self.layers = nn.ModuleList()\n"


def after(text: str, line: str, indent: int = 8) -> tuple[str, str]:
    """A line put behind ``text``."""
    return text, f"{text}{' ' * indent}{line}\n"


#: Name -> what is replaced in the stack's module, and by what. A change of the loop's last line
#: comes right after the loop.
CHANGES = {
    "none": ("", ""),
    "a shared block": (
        APPEND,
        "            self.layers.append(self.layers[0] if i == 1 else layer)\n",
    ),
    "an item assigned": after(APPEND, "self.layers[2] = self.layers[0]"),
    "another item assigned": after(
        APPEND,
        "self.layers[0] = build_module(submodules.mlp_layer, config=self.config, layer_number=1, "
        "pg_collection=pg_collection, add_layer_offset=False)",
    ),
    "layers reversed": after(APPEND, "self.layers = nn.ModuleList(reversed(list(self.layers)))"),
    "layers swapped": after(
        APPEND, "self.layers[0], self.layers[1] = self.layers[1], self.layers[0]"
    ),
    "a layer left out": after(LOOP, "if i == 1: continue", 12),
    "a slice": (LOOP, LOOP.replace("self.layer_type_list", "self.layer_type_list[:-1]")),
    "a second append": (APPEND, APPEND * 2),
    "numbers from two": (NUMBER, NUMBER.replace("+ 1", "+ 2")),
    "numbers backwards": (NUMBER, "layer_number = len(self.layer_type_list) - i + pp_layer_offset"),
    "another symbol": after(LOOP, "layer_type = '*' if layer_type == '-' else layer_type", 12),
    "another slot": ("submodules.mlp_layer", "submodules.attention_layer"),
    "slots exchanged": after(
        LAYERS,
        "submodules = __import__('dataclasses').replace("
        "submodules, mamba_layer=submodules.attention_layer)",
    ),
    "another configuration": after(
        LAYERS,
        "self.config = __import__('copy').copy(config); self.config.layernorm_epsilon = 0.5; "
        "config_of_layers, self.config = self.config, config",
    ),
    "a module more": after(APPEND, "self.extra = nn.Linear(2, 2)"),
    "an empty stack": after(APPEND, "self.layers = nn.ModuleList()"),
}


def changed(module: ModuleType, old: str, new: str) -> None:
    """Run a module's source again, in the same module, with a text replaced."""
    source = inspect.getsource(module)
    if "config_of_layers" in new:  # the layers get it, the stack keeps its own
        source = source.replace(
            "config=self.config,\n                        layer_number",
            "config=config_of_layers,\n                        layer_number",
        )
    assert old in source, old
    exec(compile(source.replace(old, new), str(module.__file__), "exec"), module.__dict__)  # noqa: S102


def outcomes() -> dict[str, Any]:
    """The outcome of a plan with seams, and of one without."""
    import conftest
    from megatron_seams.errors import Refusal, SeamsError
    from megatron_seams.runtime.cpu.world import cpu_world
    from megatron_seams.runtime.model.build import build_model

    found = {}
    make = conftest.planner()
    with cpu_world():
        for name, pattern, seams in (("seams", "K*-K*-", ("decay",)), ("native", "*-*-*-", ())):
            plan = make(pattern, seams=seams, tokens={"K": "decay"} if seams else {})
            try:
                model = build_model(plan)
            except (Refusal, SeamsError) as error:
                reasons = getattr(error, "reasons", (error,))
                found[name] = {
                    "codes": sorted({reason.code for reason in reasons}),
                    "positions": sorted({at for reason in reasons for at in reason.positions}),
                    "found": [reason.found for reason in reasons],
                }
                continue
            ids = torch.zeros(1, 8, dtype=torch.long)
            loss = model(ids, torch.arange(8)[None], None, labels=ids).mean()
            loss.backward()
            found[name] = {"trained": float(loss.detach())}
    return found


def main() -> None:
    """Print a JSON line for each change."""
    import conftest

    conftest.planner()("*")  # what every forked process reads of the same files, once
    assert "megatron_seams.runtime" not in sys.modules
    for name in sys.argv[1:] or CHANGES:
        sys.stdout.flush()
        if os.fork() == 0:
            try:
                old, new = CHANGES[name]
                if old:
                    changed(block, old, new)
                print(json.dumps({"change": name, **outcomes()}), flush=True)
            except BaseException:  # noqa: BLE001  # whatever it is goes into the report
                print(json.dumps({"change": name, "crashed": traceback.format_exc()}), flush=True)
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main()
