"""The gate: errors that must stop a workspace, and warnings."""

import datetime
import hashlib
from typing import Any, Final

import attrs

from megatron_seams.base.files import read_file
from megatron_seams.base.toml import with_lines
from megatron_seams.errors import ExitCode, SeamsError
from megatron_seams.governance.codeowners import Codeowners
from megatron_seams.governance.ownership import seam_folders, source_of
from megatron_seams.governance.rules import RULES, Case, Verdict
from megatron_seams.governance.scope import Scope
from megatron_seams.governance.workspace import TABLE, Workspace
from megatron_seams.planning.environment import Environment
from megatron_seams.seams.manifest import MANIFEST, MAX_BYTES
from megatron_seams.seams.seam import Seam

SCHEMA: Final = 1


@attrs.frozen(kw_only=True)
class Gate:
    """All verdicts, errors first.

    Attributes:
        scope: What was looked at.
        verdicts: The findings, each with its severity.
    """

    scope: Scope
    verdicts: tuple[Verdict, ...]

    @property
    def exit_code(self) -> ExitCode:
        """0 for warnings alone, 1 for errors, 3 where no Megatron can be read."""
        errors = [one.finding for one in self.verdicts if one.severity == "error"]
        if any(error.exit_code is ExitCode.ENVIRONMENT for error in errors):
            return ExitCode.ENVIRONMENT
        return ExitCode.FINDINGS if errors else ExitCode.OK

    def to_dict(self) -> dict[str, Any]:
        """The verdicts as JSON values, for ``check --format json``."""
        return {
            "schema": SCHEMA,
            "passed": self.exit_code is ExitCode.OK,
            "looked_at": self.scope.to_dict(),
            "verdicts": [
                {"severity": one.severity, **one.finding.to_dict()} for one in self.verdicts
            ],
        }


def check(
    environment: Environment,
    workspace: Workspace,
    *,
    codeowners: Codeowners | None = None,
    today: datetime.date | None = None,
    whole: bool = True,
    beside: tuple[Seam, ...] = (),
) -> Gate:
    """Apply every rule of the gate.

    Args:
        environment: The Megatron and the seams to check.
        workspace: The workspace whose policy applies.
        codeowners: The file that owners are checked against.
        today: The day that decides which dates have passed; the system's by default.
        whole: Whether the workspace's recipes and receipts are to be checked with these seams.
        beside: Installed seams that are not checked, and that a recipe may miss.
    """
    root = codeowners.root if codeowners else workspace.tree
    allowlist = environment.allowlist.narrowed(
        f"[tool.{TABLE}.policy] allow", workspace.policy.allow
    )
    scope = Scope.of(environment, workspace, codeowners, whole=whole)
    case = Case(
        scope=scope,
        beside=beside,
        environment=attrs.evolve(environment, allowlist=allowlist),
        workspace=workspace,
        codeowners=codeowners,
        folders=seam_folders(root) if root else {},
        today=today or datetime.date.today(),
        whole=whole,
    )
    judged = [verdict for rule in RULES for verdict in rule(case)]
    findings = with_lines(_at_source(verdict.finding, case) for verdict in judged)
    verdicts = [
        attrs.evolve(verdict, finding=finding)
        for verdict, finding in zip(judged, findings, strict=True)
    ]
    return Gate(
        scope=scope, verdicts=tuple(sorted(verdicts, key=lambda one: one.severity != "error"))
    )


def _at_source(finding: SeamsError, case: Case) -> SeamsError:
    """A finding in an installed manifest, moved to the equal manifest in the source tree."""
    seams = {seam.name: seam for seam in case.environment.discovery.seams}
    seam = seams.get(finding.subject)
    if seam is None or finding.file != str(seam.directory / MANIFEST):
        return finding
    for folder in source_of(seam, case.folders):
        file = folder / MANIFEST
        try:
            data = read_file(file, MAX_BYTES)
        except OSError:  # it was a manifest when the tree was searched
            continue
        if hashlib.sha256(data).hexdigest() == seam.manifest_digest:
            return attrs.evolve(finding, file=str(file))
    return finding
