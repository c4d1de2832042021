"""Four ranks under torchrun, of which one is odd: what each prints, and how it ends.

A program for test_agreement.py and scripts/agreement_drill.py. As ``--rank`` it is one rank's
keeper: it starts the rank with that rank's packages, and writes down how it ended.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import attrs

from seam_support import install_plugin, manifest_table, registry

HERE: Final = Path(__file__).parent
RANKS: Final = 4
#: Attention and a seam's layers by turns, small enough to build anywhere.
RECIPE: Final = """\
schema = 1

[model]
name = "held"
pattern = "*K*K"

[dialect.tokens]
K = "kda"

[megatron]
vocab_size = 64
max_sequence_length = 32
hidden_size = 32
num_attention_heads = 4
normalization = "RMSNorm"
add_bias_linear = false
hidden_dropout = 0.0
attention_dropout = 0.0
"""
_SMOKE: Final = """
[smoke]
steps = 2
batch = 1
sequence = 32
"""
#: What a rank runs: upstream's own loading of --spec and a process group, or the smoke command.
TRAINER: Final = """\
import pathlib, sys, torch.distributed as dist
from megatron.core.transformer.spec_utils import import_module
pathlib.Path(sys.argv[1]).touch()
spec = import_module(("megatron_seams.runtime.launch", "stack_spec"))
dist.init_process_group("gloo")  # where a rank without the package waits for the others
dist.barrier()
dist.destroy_process_group()
"""
SMOKE: Final = "smoke"


@attrs.frozen(kw_only=True)
class Ended:
    """How a drill ended.

    Attributes:
        codes: Each rank's exit code; below zero, the signal that ended it.
        messages: What each rank printed on its error stream.
        seconds: From the launch to the end of the last.
        stopped: From the first rank's arrival, with all imports of upstream behind it, to the end
            of the last; None where no rank printed that it arrived.
    """

    codes: list[int]
    messages: list[str]
    seconds: float
    stopped: float | None

    def refusal(self, rank: int) -> str:
        """The refusal in a rank's output, without the lines after it; empty if there is none."""
        found = re.search(r"\[SEAM-B11\].*?next: [^\n]*", self.messages[rank], re.DOTALL)
        return found[0] if found else ""


def lay_out(folder: Path) -> None:
    """The packages of all ranks below ``folder``, the recipe and its receipt by either version."""
    rider = (HERE / "runtime/seams/rider/plugin.py").read_text().replace("recurrent_", "kda_")
    manifest = {"acme_rider": manifest_table("rider", "kda")}
    install_plugin(folder / "site", "acme-rider", manifest, code=rider)
    install_plugin(folder / "other", "acme-rider", manifest, version="1.1", code=rider)
    absent = folder / "absent" / "megatron_seams"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ImportError('no package here')\n")
    (folder / "recipe.toml").write_text(RECIPE + _SMOKE)
    for site, receipt in (("site", "receipt.json"), ("other", "other.json")):
        registry(
            *("resolve", folder / "recipe.toml", "--receipt", folder / receipt),
            path=[folder / site],
            code=0,
        )


def drill(folder: Path, road: str, odd: dict[int, list[str]], **variables: str) -> Ended:
    """Start four ranks.

    Args:
        folder: As :func:`lay_out` leaves it.
        road: :data:`TRAINER` or :data:`SMOKE`.
        odd: Rank -> the folders that go first on its path in place of ``site``; ``["sleep"]`` for
            a rank that does nothing.
        **variables: Environment variables of all ranks.
    """
    logs = folder / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    plan = {"road": road, "odd": {str(rank): how for rank, how in odd.items()}}
    (folder / "plan.json").write_text(json.dumps(plan))
    started = time.monotonic()
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={RANKS}", str(Path(__file__)), "--rank", str(folder)),
        ],
        env=os.environ | {"MEGATRON_SEAMS_RECEIPT": str(folder / "receipt.json"), **variables},
        capture_output=True,
        check=False,
        timeout=300,
    )
    seconds = time.monotonic() - started
    arrived = [file.stat().st_mtime for file in logs.glob("*.arrived")]
    ends = [(logs / f"{rank}.code").stat().st_mtime for rank in range(RANKS)]
    return Ended(
        codes=[int((logs / f"{rank}.code").read_text()) for rank in range(RANKS)],
        messages=[(logs / f"{rank}.err").read_text() for rank in range(RANKS)],
        seconds=seconds,
        stopped=max(ends) - min(arrived) if arrived else None,
    )


def _keep(folder: Path) -> int:
    """Run one rank to its end."""
    rank = os.environ["RANK"]
    plan: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    first = plan["odd"].get(rank, [str(folder / "site")])
    if plan["road"] == SMOKE:
        command = [sys.executable, "-m", "megatron_seams", "smoke", str(folder / "recipe.toml")]
    else:
        arrival = folder / "logs" / f"{rank}.arrived"
        command = [sys.executable, "-c", plan["road"], str(arrival)]
    if first == ["sleep"]:
        command, first = [sys.executable, "-c", "import time; time.sleep(600)"], []
    path = os.pathsep.join([*first, *filter(None, [os.environ.get("PYTHONPATH")])])
    logs = folder / "logs"
    with (logs / f"{rank}.out").open("w") as out, (logs / f"{rank}.err").open("w") as err:
        child = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": path}, stdout=out, stderr=err
        )
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        code = child.wait()
    (logs / f"{rank}.code").write_text(str(code))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_keep(Path(sys.argv[2])))
