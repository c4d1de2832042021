"""What a workspace has committed to: its recipes still resolve, its receipts still verify."""

import datetime
from collections.abc import Iterator
from pathlib import Path

import attrs

from megatron_seams.errors import Refusal, SeamsError, WorkspaceInvalid
from megatron_seams.governance.workspace import TABLE, Workspace
from megatron_seams.planning.environment import Environment
from megatron_seams.planning.resolver import resolve
from megatron_seams.recipes.recipe import load_recipe
from megatron_seams.records.verify import verify


def recipe_faults(
    environment: Environment, workspace: Workspace, today: datetime.date
) -> Iterator[SeamsError]:
    """Why recipes do not resolve, and which of those known to be refused do."""
    try:
        refused = set(workspace.committed("refused")) if workspace.holds.refused else set()
        recipes = sorted(refused.union(workspace.committed("recipes")))
    except WorkspaceInvalid as fault:
        yield fault
        return
    for file in recipes:
        reasons = tuple(_refusals(file, environment, today))
        if file not in refused:
            yield from reasons
        elif not reasons:
            yield WorkspaceInvalid(
                asked=f"{file.name} as a recipe that is refused",
                found="it resolves",
                next=f"take it out of [tool.{TABLE}.holds] refused",
                subject=file.name,
                file=str(workspace.file),
                key=f"tool.{TABLE}.holds.refused",
            )


def _refusals(file: Path, environment: Environment, today: datetime.date) -> Iterator[SeamsError]:
    try:
        resolve(load_recipe(file), environment, today=today)
    except Refusal as refusal:
        for reason in refusal.reasons:
            # A reason names layers; where they are spelt is a key of this file.
            key = reason.key or ("model.pattern" if reason.positions else None)
            asked = reason.asked if reason.file else f"{file.name}: {reason.asked}"
            yield attrs.evolve(reason, asked=asked, file=reason.file or str(file), key=key)


def receipt_faults(
    environment: Environment, workspace: Workspace, today: datetime.date
) -> Iterator[SeamsError]:
    """Every difference between a committed receipt and this environment."""
    try:
        receipts = tuple(workspace.committed("receipts"))
    except WorkspaceInvalid as fault:
        yield fault
        return
    for file in receipts:
        try:
            differences = verify(file, environment, today=today)
        except SeamsError as unreadable:
            differences = (unreadable,)
        for difference in differences:
            yield attrs.evolve(difference, file=difference.file or str(file))
