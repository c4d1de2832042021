"""The gate's verdicts for other tools: GitHub's annotations, and SARIF 2.1.0."""

import inspect
from pathlib import Path
from typing import Any

from megatron_seams._version import __version__
from megatron_seams.base.files import real_path
from megatron_seams.governance.gate import Gate
from megatron_seams.governance.rules import Verdict

#: OASIS' published schema; tests validate the output with it.
SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
_ROOT = "WORKSPACE"


def github(gate: Gate, root: Path) -> str:
    """One workflow command for each verdict, with file and line.

    Args:
        gate: The verdicts.
        root: The folder that file names are relative to: the repository's.
    """
    return "".join(f"{_command(verdict, root)}\n" for verdict in gate.verdicts)


def _command(verdict: Verdict, root: Path) -> str:
    finding = verdict.finding
    properties = {"title": f"{finding.code} {type(finding).__name__}"}
    if finding.file is not None:
        properties = {
            "file": _relative(finding.file, root) or finding.file,
            "line": str(finding.line or 1),
            **properties,
        }
    listed = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    message = f"{finding.asked}\nfound: {finding.found}\nnext: {finding.next}"
    return f"::{verdict.severity} {listed}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def sarif(gate: Gate, root: Path) -> dict[str, Any]:
    """A SARIF log of one run, with a rule for each cause found and a result for each verdict."""
    causes = sorted({type(one.finding) for one in gate.verdicts}, key=lambda cause: cause.code)
    indices = {cause: index for index, cause in enumerate(causes)}
    return {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "registry check",
                        "semanticVersion": __version__,
                        "rules": [
                            {
                                "id": cause.code,
                                "name": cause.__name__,
                                "shortDescription": {"text": _sentence(cause)},
                                "help": {"text": f"`registry docs errors`, {cause.code}"},
                            }
                            for cause in causes
                        ],
                    }
                },
                "properties": {"lookedAt": gate.scope.to_dict()},
                "originalUriBaseIds": {_ROOT: {"uri": f"{root.resolve().as_uri()}/"}},
                "results": [
                    _result(verdict, indices[type(verdict.finding)], root)
                    for verdict in gate.verdicts
                ],
            }
        ],
    }


def _sentence(cause: type) -> str:
    return " ".join(inspect.cleandoc(cause.__doc__ or "").split())


def _result(verdict: Verdict, index: int, root: Path) -> dict[str, Any]:
    finding = verdict.finding
    text = f"{finding.asked}. Found: {finding.found}. Next: {finding.next}."
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": verdict.severity,
        "message": {"text": text},
    }
    if finding.file is not None:
        relative = _relative(finding.file, root)
        place = (
            {"uri": Path(finding.file).absolute().as_uri()}
            if relative is None
            else {"uri": _quoted(relative), "uriBaseId": _ROOT}
        )
        physical = {"artifactLocation": place, "region": {"startLine": finding.line or 1}}
        location: dict[str, Any] = {"physicalLocation": physical}
        if finding.key is not None:
            location["logicalLocations"] = [{"fullyQualifiedName": finding.key}]
        result["locations"] = [location]
    return result


def _relative(file: str, root: Path) -> str | None:
    """The file's path from ``root``; None for a file that is not below it."""
    real, top = real_path(Path(file)), root.resolve()
    return real.relative_to(top).as_posix() if real.is_relative_to(top) else None


def _quoted(relative: str) -> str:
    return Path("/", relative).as_uri().removeprefix("file:///")
