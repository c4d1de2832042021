"""CODEOWNERS: the owners of a path, and the line that names them, as GitHub reads the file.

The format, and how it differs from gitignore, is in GitHub's documentation of "code owners";
pathspec reads the globs. (The `codeowners` distribution was tried and not taken: it reads the words
of an inline comment as owners, drops an invalid owner where GitHub skips the line, and lets no
wildcard match a space. tests/test_codeowners.py compares this module with the documented cases and
with git.)
"""

import re
from pathlib import Path

import attrs
from pathspec.patterns.gitignore import GitIgnorePatternError
from pathspec.patterns.gitignore.basic import GitIgnoreBasicPattern

from megatron_seams.base.files import in_words, read_at_most
from megatron_seams.errors import CodeownersInvalid, Refusal
from megatron_seams.governance.workspace import repository_root

#: The places where GitHub looks, in its order; it reads the first file that exists, and no other.
LOCATIONS = (".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS")
#: GitHub does not load a larger file.
MAX_BYTES = 3 * 1024 * 1024

#: The most asterisks in one name of a pattern, and the most `**`: pathspec's expressions try every
#: split of a path, a quarter of a second for one of 200 characters at the fourth.
MOST = 3

#: The pattern ends at the first space that no backslash escapes.
_LINE = re.compile(r"(?P<pattern>(?:\\.|[^\\\s])+)(?P<owners>.*)", re.DOTALL)
#: An address has a dot inside its domain: the first behind the domain's first character is looked
#: for, since to try each takes the square of their number.
_OWNER = re.compile(r"@[A-Za-z0-9][\w-]*(/[\w.-]+)?|[^@\s]+@[^@\s][^@\s.]*\.[^@\s]+", re.ASCII)


@attrs.frozen(kw_only=True)
class Rule:
    """One line that gives paths to owners, or to nobody.

    Attributes:
        line: Its 1-based number.
        pattern: The pattern as written.
        owners: Teams, users and addresses; if empty, the paths have no owner.
    """

    line: int
    pattern: str
    owners: tuple[str, ...]
    _glob: GitIgnoreBasicPattern = attrs.field(repr=False, eq=False)

    def takes(self, path: str) -> bool:
        """Whether the pattern matches a file: its path from the root, without a leading slash."""
        return self._glob.match_file(path) is not None

    def names(self, owner: str) -> bool:
        """Whether ``owner`` is one of the owners, whatever the case of its letters."""
        return owner.casefold() in (named.casefold() for named in self.owners)


@attrs.frozen(kw_only=True)
class Codeowners:
    """A whole file.

    Attributes:
        file: The file.
        root: The root of the tree whose paths it gives owners.
        rules: Its rules in the order of the lines.
        skipped: Line number and reason for each line that GitHub does not read, and for one of more
            asterisks than :data:`MOST`, which it does.
    """

    file: Path
    root: Path
    rules: tuple[Rule, ...]
    skipped: tuple[tuple[int, str], ...] = ()

    def matching(self, path: str) -> tuple[Rule, ...]:
        """Every rule for a file, from the last line to the first; the first of them decides."""
        return tuple(rule for rule in reversed(self.rules) if rule.takes(path))


def find_codeowners(folder: Path) -> Codeowners | None:
    """The file that GitHub reads for the repository of ``folder``, or None without one.

    Where ``folder`` is in no repository, ``folder`` itself is taken for the root.
    """
    root = repository_root(folder)
    for place in LOCATIONS:
        if (root / place).is_file():
            return read_codeowners(root / place, root=root)
    return None


def read_codeowners(file: Path, *, root: Path | None = None) -> Codeowners:
    """Read a CODEOWNERS file.

    Args:
        file: The file.
        root: The root of its tree; by default the folder from which GitHub would read ``file``.

    Raises:
        Refusal: The file is missing, not UTF-8, or larger than GitHub loads.
    """
    try:
        data = read_at_most(file, MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise _unreadable(file, f"GitHub loads at most {MAX_BYTES} bytes, and it has more")
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise _unreadable(file, in_words(error)) from error
    rules, skipped = parse_rules(text)
    return Codeowners(
        file=file, root=root or _root(file.resolve().parent), rules=rules, skipped=skipped
    )


def _root(folder: Path) -> Path:
    # A repository may itself be called docs or .github.
    inside = folder.name in (".github", "docs") and not (folder / ".git").exists()
    return folder.parent if inside else folder


def parse_rules(text: str) -> tuple[tuple[Rule, ...], tuple[tuple[int, str], ...]]:
    """The rules of a CODEOWNERS text, and the lines that GitHub skips with the reason for each."""
    rules: list[Rule] = []
    skipped: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        rule = _rule(number, stripped)
        if isinstance(rule, Rule):
            rules.append(rule)
        else:
            skipped.append((number, rule))
    return tuple(rules), tuple(skipped)


def _rule(number: int, line: str) -> Rule | str:
    """A line as a rule, or the reason why it is skipped."""
    found = _LINE.match(line)
    if found is None:
        return f"{line!r} is no pattern"
    pattern = found["pattern"]
    owners: list[str] = []
    for word in found["owners"].split():
        if word.startswith("#"):  # the rest is a comment
            break
        if not _OWNER.fullmatch(word):
            return f"{word!r} is not @user, @organisation/team or an e-mail address"
        owners.append(word)
    # Syntax of gitignore that CODEOWNERS lacks.
    if pattern.startswith("!"):
        return "'!' negates no pattern here"
    if pattern.startswith("\\#"):
        return "a pattern cannot begin with '#', escaped or not"
    if re.search(r"(?<!\\)[\[\]]", pattern):
        return "'[ ]' makes no character range here"
    if "***" in pattern:
        return "three asterisks in a row are no pattern"
    if not pattern.strip("/"):
        return f"{pattern!r} matches nothing"  # as in git; pathspec differs
    names = re.sub(r"\\.", "", pattern, flags=re.DOTALL).split("/")  # escaped ones are none
    if max(names.count("**"), *(name.count("*") for name in names if name != "**"), 0) > MOST:
        return f"it has more than {MOST} asterisks in one name, or more than {MOST} '**'"
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
