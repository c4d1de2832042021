"""``registry doctor``: what is installed here, and what a model would be built with."""

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from megatron_seams.cli.common import json_option, print_json, show_faults
from megatron_seams.cli.quiet import quiet_runtime
from megatron_seams.cli.screen import console, draw_wrapped
from megatron_seams.cli.smoke import missing_runtime
from megatron_seams.errors import ExitCode, Refusal, SeamsError
from megatron_seams.governance.codeowners import find_codeowners
from megatron_seams.governance.workspace import Workspace, read_workspace
from megatron_seams.planning.environment import Environment, read_environment
from megatron_seams.records.software import software
from megatron_seams.seams.allowlist import VARIABLE

if TYPE_CHECKING:
    from megatron_seams.runtime.machine import Machine

SCHEMA: Final = 1


@click.command("doctor", short_help="What is installed, and what it builds with.")
@json_option
@click.pass_context
def doctor_command(context: click.Context, as_json: bool) -> None:
    """Show what is installed, which Megatron is imported, which backend builds models and why no
    other, which caches are used, and which policy applies.

    It imports torch and Megatron, but no plugin. Exits with 1 on findings, and with 3 where nothing
    can be built here.
    """
    environment = read_environment()
    workspace, owners, faults = _workspace()
    machine, lacking = _machine(environment)
    findings = (*environment.findings, *faults, *lacking)
    if as_json:
        print_json(_describe(environment, workspace, owners, machine, findings))
    else:
        out = console()
        for title, lines in _sections(environment, workspace, owners, machine):
            out.print(title, style="bold")
            for line in lines:
                draw_wrapped(out, line, indent=2, hanging=2)
        show_faults(findings, style="yellow")
    broken = any(it.exit_code is ExitCode.ENVIRONMENT for it in findings)
    found = ExitCode.FINDINGS if findings else ExitCode.OK
    context.exit(ExitCode.ENVIRONMENT if broken else found)


def _workspace() -> tuple[Workspace, str | None, tuple[SeamsError, ...]]:
    """The workspace, its CODEOWNERS, and what is wrong with either."""
    try:
        workspace = read_workspace(Path())
        owners = find_codeowners(workspace.root or Path())
    except Refusal as refusal:
        return Workspace(), None, refusal.reasons
    return workspace, None if owners is None else str(owners.file), ()


def _machine(environment: Environment) -> tuple["Machine | None", tuple[SeamsError, ...]]:
    lacking = tuple(missing_runtime(environment.surface.version))
    if lacking or environment.faults:
        return None, lacking
    with quiet_runtime():
        from megatron_seams.runtime.machine import read_machine

        return read_machine(), ()


def _sections(
    environment: Environment, workspace: Workspace, owners: str | None, machine: "Machine | None"
) -> Iterator[tuple[str, list[str]]]:
    python = f"python {platform.python_version()} at {sys.executable}"
    yield "software", [python, *(f"{name} {it or '-'}" for name, it in software().items())]
    yield "Megatron", _megatron(environment)
    yield "seams", _seams(environment) or ["none is installed"]
    yield "building", _building(machine)
    yield "policy", _policy(workspace, owners)


def _megatron(environment: Environment) -> list[str]:
    surface = environment.surface
    unread = "one that cannot be read" if environment.source else "none"
    where = f" at {surface.origin}" if surface.origin else ""
    built = [f"{it.symbol} {it.family or it.constant}" for it in surface.symbols]
    return [
        f"megatron-core {surface.version or unread}{where}",
        f"builds {', '.join(built) or 'nothing'}",
    ]


def _seams(environment: Environment) -> list[str]:
    found = environment.discovery
    lines = [f"{it.claim}: {it.family}, at {it.directory}" for it in found.seams]
    return lines + [
        f"{it.name} of {it.distribution} {it.version}: broken, "
        f"{', '.join(fault.code for fault in it.faults)}"
        for it in found.broken
    ]


def _building(machine: "Machine | None") -> list[str]:
    if machine is None:
        return ["no model can be built here"]
    return [
        f"torch {machine.torch}, {', '.join(machine.devices) or 'no CUDA device'}",
        f"backend {machine.backend}",
        *(f"not backend {name}: {why}" for name, why in machine.not_taken.items()),
        *(f"not native {family}: {why}" for family, why in machine.cannot.items()),
        f"compiled C++ of seams: {machine.extensions} ({machine.libraries} libraries)",
    ]


def _policy(workspace: Workspace, owners: str | None) -> list[str]:
    policy = workspace.policy
    allowed = os.environ.get(VARIABLE)
    return [
        f"workspace: {workspace.file or 'no pyproject.toml with [tool.megatron-seams]'}",
        f"CODEOWNERS: {owners or 'none'}",
        f"releases trained on: {policy.megatron_core or 'not set'}",
        "seams allowed: "
        + ("every one" if policy.allow is None else ", ".join(policy.allow) or "none"),
        f"{VARIABLE}: {'not set' if allowed is None else allowed or 'allows none'}",
    ]


def _describe(
    environment: Environment,
    workspace: Workspace,
    owners: str | None,
    machine: "Machine | None",
    findings: tuple[SeamsError, ...],
) -> dict[str, Any]:
    surface = environment.surface
    policy = workspace.policy
    return {
        "schema": SCHEMA,
        "outcome": "diagnosis",
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "software": software(),
        "megatron_core": {
            "version": str(surface.version) if surface.version else None,
            "origin": surface.origin or None,
            "symbols": {it.symbol: it.family for it in surface.symbols},
        },
        "seams": [
            {
                "name": it.name,
                "family": it.family,
                "distribution": it.distribution,
                "version": it.version,
                "owner": it.owner,
                "directory": str(it.directory),
            }
            for it in environment.discovery.seams
        ],
        "broken": [it.name for it in environment.discovery.broken],
        "machine": None if machine is None else attrs.asdict(machine),
        "policy": {
            "workspace": str(workspace.file) if workspace.file else None,
            "codeowners": owners,
            "megatron_core": policy.megatron_core,
            "allow": None if policy.allow is None else list(policy.allow),
            "operators_allow": os.environ.get(VARIABLE),
        },
        "findings": [finding.to_dict() for finding in findings],
    }
