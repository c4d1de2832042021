"""The base of every cause, the refusal that carries several, and the exit codes."""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any, ClassVar

import attrs

__all__ = ["ExitCode", "Refusal", "SeamsError", "causes"]


class ExitCode(IntEnum):
    """The exit codes of the command line."""

    OK = 0
    FINDINGS = 1
    REFUSED = 2
    ENVIRONMENT = 3


@attrs.frozen(kw_only=True, auto_exc=True)
class SeamsError(Exception):
    """The base of every cause: what was asked, what was found, what to do next.

    Attributes:
        asked: The thing that the user, the recipe or the manifest wanted.
        found: The thing that is there instead; both claimants where two contend.
        next: The next step, true without a shell; the command line adds the command to type.
        subject: The seam, token, family or file that the fault is about.
        file: The file that is at fault, where there is one.
        key: The key inside that file, dotted.
        line: The 1-based line of that file, where it is known.
        positions: The 1-based numbers of the layers concerned.
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

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by field names; an exception's own way calls ``cls(*args)``."""
        return _remade, (type(self), attrs.asdict(self, recurse=False), _notes(self))

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


class Refusal(Exception):
    """A plan that could not be made, with every reason at once.

    It is no :class:`SeamsError`: each of those has one cause, and a refusal carries many.

    Attributes:
        reasons: The faults, in the order of the first layer that each concerns.
        findings: Faults that did not cause the refusal but belong beside it.
        tokens: The decoder's layers as the pattern spells them, where it could be read at all.
    """

    def __init__(
        self,
        reasons: Iterable[SeamsError],
        findings: Iterable[SeamsError] = (),
        *,
        tokens: str = "",
    ) -> None:
        self.reasons = tuple(dict.fromkeys(reasons))
        self.findings = tuple(f for f in dict.fromkeys(findings) if f not in self.reasons)
        self.tokens = tokens
        super().__init__(self.reasons, self.findings)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle with the tokens, which are no positional argument."""
        arguments = {"reasons": self.reasons, "findings": self.findings, "tokens": self.tokens}
        return _remade, (type(self), arguments, _notes(self))

    @property
    def exit_code(self) -> ExitCode:
        """The gravest exit code among the reasons."""
        return max((reason.exit_code for reason in self.reasons), default=ExitCode.REFUSED)

    def __str__(self) -> str:
        """All reasons, one paragraph each."""
        return "\n".join(str(reason) for reason in self.reasons)


def _remade(
    cls: type[BaseException], fields: dict[str, Any], notes: tuple[str, ...]
) -> BaseException:
    error = cls(**fields)
    for note in notes:
        error.add_note(note)
    return error


def _notes(error: BaseException) -> tuple[str, ...]:
    return tuple(getattr(error, "__notes__", ()))


def causes() -> tuple[type[SeamsError], ...]:
    """All causes, ordered by code; docs/errors.md is generated from them."""
    found = (cause for cause in _below(SeamsError) if "code" in vars(cause))
    return tuple(sorted(found, key=lambda cause: cause.code))


def _below(cls: type[SeamsError]) -> Iterator[type[SeamsError]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _below(sub)
