"""CODEOWNERS: whom GitHub asks to review a path, and which line says so.

The format and its differences from gitignore are GitHub's documentation of "code owners"; the globs
themselves are read by pathspec. (The `codeowners` distribution was tried and not taken: it reads an
inline comment's words as owners, drops a wrong owner where GitHub skips the line, and lets no
wildcard match a space. tests/test_codeowners.py holds this module to the documented cases and to
git itself.)
"""

import re
from pathlib import Path

import attrs
from pathspec.patterns.gitignore import GitIgnorePatternError
from pathspec.patterns.gitignore.basic import GitIgnoreBasicPattern

from megatron_seams.errors import CodeownersInvalid, Refusal

#: Where GitHub looks, in its order; the first that is there is the only one that counts.
LOCATIONS = (".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS")
#: GitHub loads none that is larger.
MAX_BYTES = 3 * 1024 * 1024

#: The pattern ends at the first space that no backslash escapes.
_LINE = re.compile(r"(?P<pattern>(?:\\.|[^\\\s])+)(?P<owners>.*)", re.DOTALL)
_OWNER = re.compile(r"@[A-Za-z0-9][\w-]*(/[\w.-]+)?|[^@\s]+@[^@\s]+\.[^@\s]+", re.ASCII)


@attrs.frozen(kw_only=True)
class Rule:
    """One line that gives paths to owners, or to nobody.

    Attributes:
        line: Its 1-based number.
        pattern: The pattern as written.
        owners: Teams, users and addresses; none takes the paths from everybody.
    """

    line: int
    pattern: str
    owners: tuple[str, ...]
    _glob: GitIgnoreBasicPattern = attrs.field(repr=False, eq=False)

    def takes(self, path: str) -> bool:
        """Whether it matches a file, named from the root without a leading slash."""
        return self._glob.match_file(path) is not None

    def names(self, owner: str) -> bool:
        """Whether ``owner`` is one of them; handles differ by more than case."""
        return owner.casefold() in (named.casefold() for named in self.owners)


@attrs.frozen(kw_only=True)
class Codeowners:
    """A whole file.

    Attributes:
        file: The file.
        root: The root of the tree that it speaks of.
        rules: Its lines, the first first.
        skipped: Line number and reason for each line that GitHub does not read.
    """

    file: Path
    root: Path
    rules: tuple[Rule, ...]
    skipped: tuple[tuple[int, str], ...] = ()

    def matching(self, path: str) -> tuple[Rule, ...]:
        """Every rule for a file, the one that counts first: the last match wins."""
        return tuple(rule for rule in reversed(self.rules) if rule.takes(path))


def find_codeowners(folder: Path) -> Codeowners | None:
    """The file that GitHub reads for the repository of ``folder``, or None without one.

    Where ``folder`` is in no repository it is looked for in ``folder`` itself.
    """
    folder = folder.resolve()
    root = next((it for it in (folder, *folder.parents) if (it / ".git").exists()), folder)
    for place in LOCATIONS:
        if (root / place).is_file():
            return read_codeowners(root / place)
    return None


def read_codeowners(file: Path) -> Codeowners:
    """Read a CODEOWNERS file.

    Raises:
        Refusal: It is not there, not text, or larger than GitHub takes.
    """
    try:
        data = file.read_bytes()
        if len(data) > MAX_BYTES:
            raise _unreadable(file, f"{len(data)} bytes; GitHub loads at most {MAX_BYTES}")
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise _unreadable(file, str(error)) from error
    inside = file.resolve().parent
    root = inside.parent if inside.name in (".github", "docs") else inside
    rules, skipped = parse_rules(text)
    return Codeowners(file=file, root=root, rules=rules, skipped=skipped)


def parse_rules(text: str) -> tuple[tuple[Rule, ...], tuple[tuple[int, str], ...]]:
    """The rules of a CODEOWNERS text, and the lines that GitHub skips with the reason for each."""
    rules: list[Rule] = []
    skipped: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        said = line.strip()
        if not said or said.startswith("#"):
            continue
        rule = _rule(number, said)
        if isinstance(rule, Rule):
            rules.append(rule)
        else:
            skipped.append((number, rule))
    return tuple(rules), tuple(skipped)


def _rule(number: int, said: str) -> Rule | str:
    """A line as a rule, or why it is none."""
    found = _LINE.match(said)
    if found is None:
        return f"{said!r} is no pattern"
    pattern = found["pattern"]
    owners: list[str] = []
    for word in found["owners"].split():
        if word.startswith("#"):  # the rest is a comment
            break
        if not _OWNER.fullmatch(word):
            return f"{word!r} is not @user, @organisation/team or an e-mail address"
        owners.append(word)
    # What gitignore has and CODEOWNERS has not.
    if pattern.startswith("!"):
        return "'!' negates no pattern here"
    if pattern.startswith("\\#"):
        return "a pattern cannot begin with '#', escaped or not"
    if re.search(r"(?<!\\)[\[\]]", pattern):
        return "'[ ]' makes no character range here"
    if "***" in pattern:
        return "three asterisks in a row are no pattern"
    if not pattern.strip("/"):
        return f"{pattern!r} matches nothing"  # as git has it, and pathspec has not
    try:
        glob = GitIgnoreBasicPattern(pattern)
    except GitIgnorePatternError as error:
        return str(error)
    return Rule(line=number, pattern=pattern, owners=tuple(owners), glob=glob)


def _unreadable(file: Path, found: str) -> Refusal:
    fault = CodeownersInvalid(
        asked="a CODEOWNERS file that can be read",
        found=found,
        next="name another, or correct it",
        subject=file.name,
        file=str(file),
    )
    return Refusal([fault])
