"""What every cause in :mod:`megatron_seams.errors` says: what was asked, found, and is to do."""

from enum import IntEnum
from typing import Any, ClassVar

import attrs


class ExitCode(IntEnum):
    """What the process returns to its caller."""

    OK = 0
    FINDINGS = 1
    REFUSED = 2
    ENVIRONMENT = 3


@attrs.frozen(kw_only=True, auto_exc=True)
class SeamsError(Exception):
    """The base of all of them: what was asked, what was found, what to do next.

    Attributes:
        asked: What the user, the recipe or the manifest wanted.
        found: What is there instead; both claimants where two contend.
        next: The next command to run, or the next thing to do.
        subject: The seam, token, family or file it is about.
        file: The file that is at fault, where there is one.
        key: The key inside that file, dotted.
        line: The 1-based line of that file, where it is known.
        positions: The 1-based layer numbers concerned.
    """

    code: ClassVar[str]
    exit_code: ClassVar[ExitCode] = ExitCode.REFUSED

    asked: str
    found: str
    next: str
    subject: str = ""
    file: str | None = None
    key: str | None = None
    line: int | None = None
    positions: tuple[int, ...] = ()

    def __str__(self) -> str:
        """One paragraph a person can act on."""
        place = self._location()
        where = f"\n  in: {place}" if place else ""
        layers = f"\n  layers: {', '.join(map(str, self.positions))}" if self.positions else ""
        return (
            f"[{self.code}] {self.asked}{where}{layers}\n  found: {self.found}\n  next: {self.next}"
        )

    def _location(self) -> str:
        parts = [f"{self.file}:{self.line}" if self.line else self.file] if self.file else []
        return ", ".join([*parts, f"key {self.key}"] if self.key else parts)

    def to_dict(self) -> dict[str, Any]:
        """The fault as the JSON outputs carry it."""
        return {
            "code": self.code,
            "error": type(self).__name__,
            "subject": self.subject,
            "asked": self.asked,
            "found": self.found,
            "next": self.next,
            "file": self.file,
            "key": self.key,
            "line": self.line,
            "positions": list(self.positions),
        }
