"""A workspace's records of its models: receipts with their acceptances, and proofs."""

import datetime
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from megatron_seams.base.files import files_named
from megatron_seams.errors import Refusal, SeamsError
from megatron_seams.governance.workspace import Workspace
from megatron_seams.planning.environment import Environment
from megatron_seams.records.proof import INDEX, read_proof
from megatron_seams.records.receipt import read_receipt
from megatron_seams.records.verify import verify
from megatron_seams.report.links import Link, file_link

#: Proofs that the page lists; reading one reads all of its checkpoint.
_PROOFS: Final = 20


@attrs.frozen(kw_only=True)
class Accepted:
    """One acceptance of a receipt."""

    by: str
    when: str
    reason: str


@attrs.frozen(kw_only=True)
class Record:
    """A receipt or a proof.

    Attributes:
        kind: ``receipt`` or ``proof``.
        file: It, as a link.
        model: The model that it is about.
        megatron: The Megatron-Core that it was made on.
        state: ``verifies``, ``differs``, ``whole`` or ``unreadable``.
        faults: Its differences, or why it cannot be read.
        accepted: The acceptances, the latest first.
    """

    kind: str
    file: Link
    state: str
    model: str = ""
    megatron: str = ""
    faults: tuple[SeamsError, ...] = ()
    accepted: tuple[Accepted, ...] = ()

    @property
    def wrong(self) -> bool:
        """Whether somebody must look at it."""
        return bool(self.faults)


def records_of(
    workspace: Workspace, environment: Environment, today: datetime.date, page: Path | None
) -> tuple[Record, ...]:
    """The receipts and proofs of a workspace, those that somebody must look at first."""
    if workspace.root is None:
        return ()
    found = [*_receipts(workspace, workspace.root, environment, today, page)]
    if workspace.tree is not None:
        found += _proofs(workspace.tree, page)
    return tuple(sorted(found, key=lambda record: not record.wrong))


def _receipts(
    workspace: Workspace,
    root: Path,
    environment: Environment,
    today: datetime.date,
    page: Path | None,
) -> Iterator[Record]:
    for file in workspace.files("receipts"):
        link = file_link(file, file.relative_to(root).as_posix(), page)
        try:
            body, kept = read_receipt(file)
            held = workspace.policy.hold_software
            differences = verify(
                file, environment, today=today, hold_software=held, runs_here=False
            )
        except SeamsError as fault:
            yield Record(kind="receipt", file=link, state="unreadable", faults=(fault,))
            continue
        accepted = [
            Accepted(by=str(it["by"]), when=str(it["date"]), reason=str(it["reason"]))
            for it in body.get("accepted", [])
        ]
        yield Record(
            kind="receipt",
            file=link,
            state="differs" if differences else "verifies",
            model=kept.model.name,
            megatron=str(body["plan"]["megatron_core"].get("version")),
            faults=differences,
            accepted=tuple(reversed(accepted)),
        )


def _proofs(root: Path, page: Path | None) -> Iterator[Record]:
    for file in itertools.islice(files_named(root, INDEX), _PROOFS):
        folder = file.parent
        link = file_link(folder, folder.relative_to(root).as_posix(), page)
        try:
            proof = read_proof(folder)
            _, kept = read_receipt(proof.receipt)
        except (SeamsError, Refusal) as fault:
            faults = fault.reasons if isinstance(fault, Refusal) else (fault,)
            yield Record(kind="proof", file=link, state="unreadable", faults=faults)
            continue
        yield Record(
            kind="proof",
            file=link,
            state="whole",
            model=kept.model.name,
            megatron=proof.megatron_core,
        )
