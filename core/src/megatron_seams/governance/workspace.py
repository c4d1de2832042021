"""A workspace's settings: ``[tool.megatron-seams]`` in its root ``pyproject.toml``."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
from attrs import field, validators
from packaging.specifiers import SpecifierSet

from megatron_seams.base.structure import structure
from megatron_seams.base.toml import TomlError, read_toml
from megatron_seams.base.validators import each_one_of, specifier
from megatron_seams.errors import Refusal, WorkspaceInvalid
from megatron_seams.records.software import NAMED

TABLE = "megatron-seams"
_PROJECT = "pyproject.toml"


@attrs.frozen(kw_only=True)
class WorkspacePolicy:
    """``[tool.megatron-seams.policy]``.

    Attributes:
        megatron_core: The releases that are still trained on here, ``>=0.17,<0.20``.
        allow: The seams that may be used here; None allows every one.
        external: The seams of other workspaces that are used here: CODEOWNERS says nothing about
            them, and a source tree is checked beside them.
        require_codeowners: Whether the source of every other seam lies in the tree of CODEOWNERS.
        hold_software: The distributions of :data:`NAMED` whose versions the receipts of this
            workspace hold: another version is then refused as another Megatron is.
    """

    megatron_core: str | None = field(default=None, validator=validators.optional(specifier))
    allow: tuple[str, ...] | None = None
    external: tuple[str, ...] = ()
    require_codeowners: bool = False
    hold_software: tuple[str, ...] = field(default=(), validator=each_one_of(*NAMED))

    @property
    def range(self) -> SpecifierSet | None:
        """``megatron_core`` as a parsed version range; None where it is not set."""
        return None if self.megatron_core is None else SpecifierSet(self.megatron_core)


@attrs.frozen(kw_only=True)
class Holds:
    """``[tool.megatron-seams.holds]``: committed files that the gate checks, as globs.

    Attributes:
        recipes: Recipes that must resolve.
        refused: Recipes that must be refused.
        receipts: Receipts that must verify.
    """

    recipes: tuple[str, ...] | None = None
    refused: tuple[str, ...] = ()
    receipts: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True)
class _Table:
    policy: WorkspacePolicy = field(factory=WorkspacePolicy)
    holds: Holds = field(factory=Holds)


@attrs.frozen(kw_only=True)
class Workspace:
    """The settings of a workspace.

    Attributes:
        policy: The table ``policy``.
        holds: The table ``holds``.
        root: The folder whose committed files are held: that of ``file``, or the repository's.
        file: The ``pyproject.toml`` that has the tables; None without one.
    """

    policy: WorkspacePolicy = field(factory=WorkspacePolicy)
    holds: Holds = field(factory=Holds)
    root: Path | None = None
    file: Path | None = None

    @property
    def tree(self) -> Path | None:
        """``root``, if a file of settings or a repository says that it is one; else None.

        Any other folder may be a home or a disk, which nobody asked to be searched.
        """
        marked = self.root and (self.file or (self.root / ".git").exists())
        return self.root if marked else None

    def files(self, *keys: str) -> tuple[Path, ...]:
        """The files of :meth:`committed` for these keys, sorted; of a glob that names none, none.

        The gate reports such a glob.
        """
        found: set[Path] = set()
        for key in keys:
            # The default globs are those of files that hold; none is refused by default.
            if key == "refused" and not self.holds.refused:
                continue
            for _, files in self._matched(key):
                found |= files
        return tuple(sorted(found))

    def committed(self, key: str) -> Iterator[Path]:
        """The files that the globs of ``holds.KEY`` match, sorted; ``KEY/*`` where it is not set.

        Raises:
            WorkspaceInvalid: A glob of the table matches no file.
        """
        found: set[Path] = set()
        for glob, files in self._matched(key):
            if not files and getattr(self.holds, key) is not None:
                raise _invalid(
                    self.file or Path(self.root or "", _PROJECT),
                    f"{glob!r} names no file",
                    f"tool.{TABLE}.holds.{key}",
                )
            found |= files
        yield from sorted(found)

    def _matched(self, key: str) -> Iterator[tuple[str, set[Path]]]:
        """Each glob of ``holds.KEY``, or the one in its place, with the files that it matches."""
        globs: tuple[str, ...] | None = getattr(self.holds, key)
        suffix = "json" if key == "receipts" else "toml"
        if self.root is None:
            return
        for glob in (f"{key}/*.{suffix}",) if globs is None else globs:
            try:
                yield glob, {file for file in self.root.glob(glob) if file.is_file()}
            # Empty, from the root of the machine, or (until Python 3.13) the folder itself.
            except (ValueError, NotImplementedError, IndexError):
                yield glob, set()


def read_workspace(folder: Path) -> Workspace:
    """The workspace of ``folder``, from the nearest ``pyproject.toml`` above that has the table.

    Returns:
        The workspace; where no file has the table, one with default settings at the root of the
        repository, or at ``folder`` outside of one.

    Raises:
        Refusal: The table has a wrong key or value, or the file cannot be read.
    """
    for parent in (folder.resolve(), *folder.resolve().parents):
        file = parent / _PROJECT
        if file.is_file():
            table = _table(file)
            if table is not None:
                return _structured(table, file)
    return Workspace(root=repository_root(folder))


def workspace_of(paths: Iterable[Path]) -> Workspace:
    """The workspace of folders that are checked; without one, the working directory's.

    Raises:
        Refusal: The folders are of several workspaces, one of which has a policy; or as for
            :func:`read_workspace`.
    """
    read = {path.resolve(): _workspace_of(path.resolve()) for path in paths if path.is_dir()}
    found = {workspace.root: workspace for workspace in read.values()}
    if len(found) == 1:
        return next(iter(found.values()))
    policies = sorted(str(it.file) for it in found.values() if it.file)
    if policies:
        fault = WorkspaceInvalid(
            asked=f"one workspace for {', '.join(map(str, sorted(read)))}",
            found=f"they are of {len(found)}: the policies are {', '.join(policies)}",
            next="check each by itself, or name one with --workspace",
            file=policies[0],
        )
        raise Refusal([fault])
    return read_workspace(Path())


def _workspace_of(folder: Path) -> Workspace:
    found = read_workspace(folder)
    # Outside of a repository nothing says where a tree begins: where the user stands, if around it.
    rootless = found.file is None and not (repository_root(folder) / ".git").exists()
    return read_workspace(Path()) if rootless and Path.cwd() in folder.parents else found


def repository_root(folder: Path) -> Path:
    """The root of the git repository that a folder is in; the folder itself outside of one."""
    folder = folder.resolve()
    return next((it for it in (folder, *folder.parents) if (it / ".git").exists()), folder)


def _table(file: Path) -> dict[str, Any] | None:
    try:
        found = read_toml(file)
    except TomlError as error:
        raise Refusal([_invalid(file, str(error), None)]) from error
    tools = found.get("tool", {})
    table = tools.get(TABLE) if isinstance(tools, dict) else None
    return table if table is None or isinstance(table, dict) else {"": table}


def _structured(table: dict[str, Any], file: Path) -> Workspace:
    found, faults = structure(_Table, table)
    if found is None:
        raise Refusal(
            _invalid(file, fault.message, f"tool.{TABLE}.{fault.key}".rstrip("."))
            for fault in faults
        )
    return Workspace(policy=found.policy, holds=found.holds, root=file.parent, file=file)


def _invalid(file: Path, found: str, key: str | None) -> WorkspaceInvalid:
    return WorkspaceInvalid(
        asked=f"a valid [tool.{TABLE}] table",
        found=found,
        next="correct the key" if key else "correct the file",
        file=str(file),
        key=key,
    )
