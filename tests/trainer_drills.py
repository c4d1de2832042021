"""Two ranks of upstream's trainer over NCCL, of which one is odd: how each ends, and what it says.

As a program, with a folder, it is one rank's keeper under torchrun: it starts the trainer with that
rank's packages, and writes down how it ended.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from seam_support import install_plugin, manifest_table
from trainer_runs import ADDED, Trainer

HERE: Final = Path(__file__).parent
RANKS: Final = 2
#: The variable that makes a rank's plugin wait for ever.
HANGS: Final = "DRILL_HANGS"
RECIPE: Final = """\
schema = 1

[model]
name = "drilled"
pattern = "*K*K"

[dialect.tokens]
K = "kda"

[megatron]
vocab_size = 8192
max_sequence_length = 512
hidden_size = 256
ffn_hidden_size = 512
num_attention_heads = 4
normalization = "RMSNorm"
position_embedding_type = "rope"
share_embeddings_and_output_weights = false
add_bias_linear = false
hidden_dropout = 0.0
attention_dropout = 0.0
bf16 = true
params_dtype = "bfloat16"
attention_backend = "unfused"
gradient_accumulation_fusion = false
"""
#: What rank 0 prints while it checks its arguments, just before it imports what ``--spec`` names.
ARRIVAL: Final = "using world size:"


@attrs.frozen(kw_only=True)
class Drill:
    """One drill.

    Attributes:
        name: As the table has it.
        refusal: A regular expression for the refusal that some rank prints.
        paths: Rank -> the folders that go first on its path, in place of ``site``.
        receipts: Rank -> the file of its receipt, in place of the recipe's; empty for none.
        pattern: The command line's, in place of the receipt's.
        hangs: Whether rank 1's plugin never comes to the end of its import.
        another: Whether rank 1 runs the other Megatron.
    """

    name: str
    refusal: str = r"\[SEAM-B11\]"
    paths: Mapping[int, tuple[str, ...]] = attrs.field(factory=dict)
    receipts: Mapping[int, str] = attrs.field(factory=dict)
    pattern: str = ""
    hangs: bool = False
    another: bool = False


DRILLS: Final = (
    Drill(name="both lack the plugin", refusal=r"\[SEAM-[A-Z]\d\d\]", paths={0: (), 1: ()}),
    Drill(name="no receipt", refusal=r"\[SEAM-B09\]", receipts={0: "", 1: ""}),
    Drill(name="another pattern", refusal=r"\[SEAM-B09\]", pattern="*M*-"),
    Drill(name="rank 1 has another plugin version", paths={1: ("other",)}),
    Drill(name="rank 1 has another Megatron", another=True),
    Drill(name="rank 1 lacks megatron-seams", paths={1: ("absent", "site")}),
    Drill(name="rank 1 has another receipt", receipts={1: "changed.json"}),
    Drill(name="rank 1's plugin hangs", hangs=True),
)


@attrs.frozen(kw_only=True)
class Ended:
    """How a drill ended.

    Attributes:
        codes: Each rank's exit code; below zero, the signal that ended it; None where it was
            still running when the drill was stopped.
        texts: What each rank printed.
        seconds: From the launch to the end of the last.
        stopped: From rank 0's arrival, with all imports of upstream behind it, to the end of the
            last; None where it did not arrive.
    """

    codes: tuple[int | None, ...]
    texts: tuple[str, ...]
    seconds: float
    stopped: float | None

    @property
    def trained(self) -> bool:
        """Whether any rank finished an iteration."""
        return any("lm loss: " in text for text in self.texts)

    def refusals(self) -> list[str]:
        """Each refusal that some rank printed, once, on one line without the next step."""
        pattern = r"\[SEAM-[A-Z]\d\d\].*?(?=\n[^\n]*next: )"
        found = [
            re.sub(r"\s+(?:\[rank\d\]:\s*)?", " ", text)
            for each in self.texts
            for text in re.findall(pattern, each, re.DOTALL)
        ]
        return list(dict.fromkeys(found))


def lay_out(trainer: Trainer, other: Path | None) -> None:
    """Put the packages, receipts and arguments of all drills into the trainer's folder.

    Args:
        trainer: The trainer.
        other: A folder with another ``megatron/core``, for the drill of another Megatron.
    """
    folder = trainer.folder
    code = (HERE / "runtime/seams/rider/plugin.py").read_text().replace("recurrent_", "kda_")
    code = f"import os, time\n\nif os.environ.get('{HANGS}'):\n    time.sleep(3600)\n{code}"
    manifest = {"acme_rider": manifest_table("rider", "kda")}
    install_plugin(folder / "site", "acme-rider", manifest, code=code)
    install_plugin(folder / "other", "acme-rider", manifest, version="1.1", code=code)
    absent = folder / "absent" / "megatron_seams"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ImportError('no package here')\n")
    with_plugin = attrs.evolve(trainer, first=(folder / "site",))
    recipe = with_plugin.prepare("drilled", RECIPE)
    with_plugin.prepare("changed", RECIPE.replace("ffn_hidden_size = 512", "ffn_hidden_size = 768"))
    words = [*shlex.split(with_plugin.registry("args", recipe)), *ADDED]
    (folder / "words.json").write_text(json.dumps(words))
    if other is not None:
        shutil.copytree(trainer.checkout, folder / "checkout")
        shutil.rmtree(folder / "checkout/megatron/core")
        shutil.copytree(other / "megatron/core", folder / "checkout/megatron/core")


def drill(trainer: Trainer, asked: Drill) -> Ended:
    """Start the ranks of a drill, as :func:`lay_out` left them, and wait for their end."""
    logs = trainer.folder / re.sub(r"\W+", "-", asked.name)
    logs.mkdir()
    (logs / "drill.json").write_text(json.dumps(attrs.asdict(asked)))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={RANKS}", str(Path(__file__)), str(logs), str(trainer.checkout)),
    ]
    ran = trainer.run(f"{logs.name}-launcher", command, {})
    codes = [_read(logs / f"{rank}.code") for rank in range(RANKS)]
    arrived = _read(logs / "0.arrived")
    ends = [file.stat().st_mtime for file in logs.glob("*.code")]
    return Ended(
        codes=tuple(None if code is None else int(code) for code in codes),
        texts=tuple(_read(logs / f"{rank}.log") or "" for rank in range(RANKS)),
        seconds=ran.seconds,
        stopped=None if arrived is None or not ends else max(ends) - float(arrived),
    )


def _read(file: Path) -> str | None:
    return file.read_text(errors="replace") if file.exists() else None


def _keep(logs: Path, checkout: Path) -> int:
    """Run one rank to its end."""
    folder, rank = logs.parent, os.environ["RANK"]
    asked: dict[str, Any] = json.loads((logs / "drill.json").read_text())
    words = json.loads((folder / "words.json").read_text())
    if asked["pattern"]:
        words[words.index("--hybrid-layer-pattern") + 1] = asked["pattern"]
    odd = rank == "1"
    if asked["another"] and odd:
        checkout = folder / "checkout"
    first = [str(folder / name) for name in asked["paths"].get(rank, ["site"])]
    path = [*first, str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    variables.pop("MEGATRON_SEAMS_RECEIPT", None)
    if receipt := asked["receipts"].get(rank, "drilled.json"):
        variables["MEGATRON_SEAMS_RECEIPT"] = str(folder / receipt)
    if asked["hangs"] and odd:
        variables[HANGS] = "1"
    child = subprocess.Popen(
        [sys.executable, str(checkout / "pretrain_hybrid.py"), *words],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    assert child.stdout is not None
    with (logs / f"{rank}.log").open("w") as log:
        for line in child.stdout:
            log.write(line)
            log.flush()
            if ARRIVAL in line:
                (logs / f"{rank}.arrived").write_text(str(time.time()))
    code = child.wait()
    (logs / f"{rank}.code").write_text(str(code))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_keep(Path(sys.argv[1]), Path(sys.argv[2])))
