"""A virtual environment whose packages are links to those of the tests' own.

Made in half a second: torch and Megatron would be gigabytes to install and minutes to compile.
"""

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path


def link_environment(folder: Path, *, left_out: Callable[[str], bool]) -> Path:
    """Make one in ``folder``.

    Args:
        folder: Does not exist yet.
        left_out: Whether a file or folder of ``site-packages`` is not to be in it, by its name.

    Returns:
        Its ``site-packages``; its Python is ``bin/python`` in ``folder``.
    """
    uv = [sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, str(folder)]
    subprocess.run(uv, check=True, capture_output=True)
    ours, theirs = (
        Path(sysconfig.get_path("purelib", vars={"base": str(base)}))
        for base in (folder, sys.prefix)
    )
    for entry in theirs.iterdir():
        if not left_out(entry.name) and not (ours / entry.name).exists():
            (ours / entry.name).symlink_to(entry)
    for tool in Path(sysconfig.get_path("scripts")).iterdir():
        # Programs such as ruff; scripts name the Python that they were installed for.
        if not (folder / "bin" / tool.name).exists() and tool.is_file():
            with tool.open("rb") as file:
                if file.read(2) != b"#!":
                    (folder / "bin" / tool.name).symlink_to(tool)
    return ours
