"""The commands' screens at three widths, as text files below tests/data/screens.

``python tests/screens.py`` writes them anew. Look at the difference before it is committed.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from click.testing import CliRunner

from megatron_seams.cli import cli
from megatron_seams.errors import ManifestInvalid
from megatron_seams.planning.environment import Environment
from megatron_seams.seams.seam import BrokenSeam
from megatron_seams.upstream.source import MegatronSource
from seam_support import environment, make_seam, surface, toml

FOLDER = Path(__file__).parent / "data" / "screens"
WIDTHS = (60, 80, 120)
#: File of the screen -> the command. Those after "!" are refused.
COMMANDS = {
    "list": ("list",),
    "list-owners": ("list", "--owners"),
    "resolve": ("resolve", "model.toml"),
    "resolve-long": ("resolve", "MEME*EMEMEM*EMEM*E", "--depth", "108"),
    "resolve-layers": ("resolve", "M*|ME", "--layers"),
    "resolve-refused": ("resolve", "MQM", "--depth", "9"),
    "explain": ("explain", "mla"),
    "explain-token": ("explain", "D"),
    "explain-refused": ("explain", "lightning"),
    "surface": ("surface",),
    "preview": ("preview", "other.whl", "model.toml"),
    "help": ("--help",),
}
_MODEL = {
    "schema": 1,
    "model": {"name": "a model", "pattern": "MKMKMKM|MKMEME+L"},
    "dialect": {"tokens": {"K": "kda", "L": "lightning"}},
    "policy": {"experiments": ["trial"]},
    "features": [{"family": "recall"}],
    "parallelism": {"pipeline-parallel": 2},
}


def world(version: str, *without: str) -> Environment:
    """Every state of a family: native, seam, experiment, superseded, refused and broken."""
    fault = ManifestInvalid(
        asked="a valid manifest of seam 'gated_memory'",
        found="unknown key 'colour'; the keys of [seam] are name, family, summary, owner",
        next="correct the key",
        subject="gated_memory",
        file="/site/acme_gated_memory/seam.toml",
        key="seam.colour",
    )
    broken = BrokenSeam(
        name="gated_memory", distribution="acme-gated-memory", version="1.0", faults=(fault,)
    )
    return environment(
        make_seam("kda", "kda", owner="@acme/linear-attention"),
        make_seam("trial", "lightning", status="experiment"),
        make_seam("memory", "recall", placement="embedding", owner="@acme/memory"),
        make_seam(
            "latent",
            "mla",
            fallback="native",
            accepts={"symbol-name": "MLA", "tracking": ["NVIDIA/Megatron-LM#7054"]},
            slots=("attention_layer",),
            owner="@acme/attention",
        ),
        make_seam("one", "fast", owner="@acme/one"),
        make_seam("two", "fast", owner="@other/two"),
        native=surface(version, without=without, exclusive=False),
        broken=[broken],
    )


@contextlib.contextmanager
def _a_world(width: int, folder: Path) -> Iterator[None]:
    now, other = world("0.19.2"), world("0.20.0", "DS_ATTENTION")
    names = ("list", "resolve", "explain", "preview")
    source = MegatronSource(origin="/site/megatron", read=lambda _: None)
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(
                mock.patch(
                    f"megatron_seams.cli.{name}.read_environment",
                    lambda megatron=None: other if megatron else now,
                )
            )
        stack.enter_context(
            mock.patch("megatron_seams.cli.surface._read", return_value=(source, now.surface, ()))
        )
        variables = {"COLUMNS": str(width), "NO_COLOR": "1"}
        stack.enter_context(mock.patch.dict(os.environ, variables))
        stack.enter_context(contextlib.chdir(folder))
        (folder / "model.toml").write_text(toml(_MODEL))
        yield


def screens(width: int, folder: Path) -> dict[str, str]:
    """Name of each screen -> its text at a width, and what a shell would show of the exit code.

    Args:
        width: The columns.
        folder: An empty folder to work in.
    """
    made = {}
    with _a_world(width, folder):
        for name, command in COMMANDS.items():
            done = CliRunner().invoke(
                cli, command, prog_name="registry", terminal_width=width, max_content_width=width
            )
            shown = re.sub(r"\x1b\[[0-9;]*m", "", done.output)
            made[name] = f"$ registry {' '.join(command)}\n{shown}[exit code {done.exit_code}]\n"
    return made


def main() -> None:
    """Write every screen."""
    import tempfile

    for width in WIDTHS:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in screens(width, Path(folder)).items():
                file = FOLDER / str(width) / f"{name}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
