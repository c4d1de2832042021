"""The scope of a gate: how much it looked at, so that its silence can be judged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from megatron_seams.base.wording import counted
from megatron_seams.governance.codeowners import Codeowners
from megatron_seams.governance.workspace import Workspace
from megatron_seams.planning.environment import Environment


@attrs.frozen(kw_only=True)
class Scope:
    """The files and seams that a gate looked at.

    Attributes:
        root: The folder whose committed files are held; None for a gate without a workspace.
        seams: The number of seams, broken ones included.
        external: How many of them the policy names as external.
        recipes: The number of recipes that were resolved; None where none was tried.
        receipts: The number of receipts that were verified; None where none was tried.
        codeowners: The CODEOWNERS file.
        policy: The file that has the policy.
    """

    root: Path | None
    seams: int
    external: int
    recipes: int | None
    receipts: int | None
    codeowners: Path | None
    policy: Path | None

    @classmethod
    def of(
        cls,
        environment: Environment,
        workspace: Workspace,
        codeowners: Codeowners | None,
        *,
        whole: bool,
    ) -> "Scope":
        """The scope of a gate; ``whole`` as for :func:`megatron_seams.governance.gate.check`."""
        names = environment.discovery.names
        planned = whole and not environment.faults
        return cls(
            root=workspace.root,
            seams=len(names),
            external=sum(name in workspace.policy.external for name in names),
            recipes=len(workspace.files("recipes", "refused")) if planned else None,
            receipts=len(workspace.files("receipts")) if planned else None,
            codeowners=codeowners.file if codeowners else None,
            policy=workspace.file,
        )

    @property
    def empty(self) -> bool:
        """Whether there was nothing to check."""
        return not (self.seams or self.recipes or self.receipts)

    def to_dict(self) -> dict[str, Any]:
        """The scope as JSON values."""
        paths = {"root": self.root, "codeowners": self.codeowners, "policy": self.policy}
        return {
            "seams": self.seams,
            "external": self.external,
            "recipes": self.recipes,
            "receipts": self.receipts,
            **{key: None if path is None else str(path) for key, path in paths.items()},
        }

    def __str__(self) -> str:
        """One line for people."""
        return "; ".join(self._parts())

    def _parts(self) -> Iterator[str]:
        of_others = f" ({self.external} external)" if self.external else ""
        held = f"{counted(self.seams, 'seam')}{of_others}"
        if self.recipes is None or self.receipts is None:
            yield f"{held}, neither recipes nor receipts"
        else:
            recipes, receipts = (
                counted(self.recipes, "recipe"),
                counted(self.receipts, "receipt"),
            )
            yield f"{held}, {recipes}, {receipts}"
        yield f"owners: {self._inside(self.codeowners) or 'no CODEOWNERS'}"
        yield f"policy: {self._inside(self.policy) or 'none'}"

    def _inside(self, file: Path | None) -> str | None:
        """A file's path from the root, or whole where it is not below it."""
        if file is None or self.root is None:
            return None if file is None else str(file)
        real, root = file.resolve(), self.root.resolve()
        return real.relative_to(root).as_posix() if real.is_relative_to(root) else str(file)
