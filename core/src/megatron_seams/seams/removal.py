"""Removing a seam: the folder to delete in a workspace, or the distribution to uninstall."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_seams.base.distributions import Installed, normalized
from megatron_seams.base.toml import TomlError, read_toml
from megatron_seams.seams.claims import GROUP
from megatron_seams.seams.seam import Seam


def how_to_remove(seam: Seam, distributions: Mapping[str, Sequence[Installed]]) -> str:
    """The step that removes a seam, in words: ``delete plugins/kda`` or ``uninstall acme-kda``.

    The folder of a project in a workspace is deleted, a distribution from a wheel is uninstalled.
    One that has further seams is kept, and only the seam's own package goes.

    Args:
        seam: The seam.
        distributions: The installed distributions by normalized name, read once for all seams.
    """
    own = distributions.get(normalized(seam.distribution), ())
    if not own and seam.directory.is_dir():  # read from its source
        return f"delete {_in_workspace(seam.directory)} and its entry point"
    for project in own:
        roots = project.editable_roots()
        if not _has_one_seam(project):
            folder = _in_workspace(seam.directory) if roots else seam.directory.as_posix()
            return f"delete {folder} and its entry point in {seam.distribution}"
        if roots:
            return f"delete {_in_workspace(roots[0])}"
    return f"uninstall {seam.distribution}"


def _has_one_seam(project: Installed) -> bool:
    """Whether a distribution has one seam only."""
    points = project.entry_points(GROUP)
    return not isinstance(points, str) and len(points) == 1


def _in_workspace(folder: Path) -> str:
    """The folder, relative to the root of its workspace where it is in one."""
    for parent in folder.parents:
        try:
            root = read_toml(parent / "pyproject.toml")
        except TomlError:
            continue
        tool = root.get("tool")
        uv = tool.get("uv") if isinstance(tool, dict) else None
        if isinstance(uv, dict) and "workspace" in uv:
            return folder.relative_to(parent).as_posix()
    return folder.as_posix()
