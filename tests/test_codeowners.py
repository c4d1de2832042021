"""CODEOWNERS as GitHub documents it, and its globs as git itself reads them."""

import subprocess
from pathlib import Path

import pytest

from megatron_seams.errors import CodeownersInvalid, Refusal
from megatron_seams.governance.codeowners import (
    MAX_BYTES,
    Codeowners,
    find_codeowners,
    read_codeowners,
)


def written(root: Path, text: str, place: str = "CODEOWNERS") -> Codeowners:
    file = root / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return read_codeowners(file)


def owners(file: Codeowners, path: str) -> tuple[str, ...] | None:
    """Who owns a path; None where no line matches."""
    rules = file.matching(path)
    return rules[0].owners if rules else None


# --- which line counts ------------------------------------------------------------------------

#: The kinds of line that GitHub's documentation gives as examples.
DOCUMENTED = """
# Whoever is named here reviews everything else.
*       @org/everything @second

*.js    @js-owner #an inline comment, with @nobody in it
*.go    docs@example.com
*.txt   @org/texts
/build/logs/ @doctocat
docs/*  docs@example.com
apps/   @octocat
/docs/  @doctocat
/scripts/ @doctocat @octocat
**/logs @octocat
/apps/  @octocat
/apps/github
/apps/secret @doctocat
"""


@pytest.mark.parametrize(
    ("path", "owned_by"),
    [
        ("README.md", ("@org/everything", "@second")),
        ("src/deep/down.js", ("@js-owner",)),
        ("down.go", ("docs@example.com",)),
        ("note.txt", ("@org/texts",)),
        ("build/logs/today.log", ("@octocat",)),  # `**/logs` comes later
        ("src/build/logs/x", ("@octocat",)),
        ("src/docs/getting-started.md", ("@org/everything", "@second")),  # `docs/*` is anchored
        ("docs/getting-started.md", ("@doctocat",)),  # and `/docs/` overrules it
        ("docs/build-app/troubleshooting.md", ("@doctocat",)),
        ("src/apps/x.py", ("@octocat",)),  # `apps/` is any folder of that name
        ("apps/x.py", ("@octocat",)),
        ("apps/github", ()),  # a line without an owner takes a path from everybody
        ("apps/github/deep/x.py", ()),
        ("apps/secret/x.js", ("@doctocat",)),
        ("scripts/x.js", ("@doctocat", "@octocat")),
        ("deep/down/logs/x", ("@octocat",)),
        ("Scripts/x", ("@org/everything", "@second")),  # case matters
    ],
)
def test_the_last_line_that_matches_counts(
    path: str, owned_by: tuple[str, ...], tmp_path: Path
) -> None:
    assert owners(written(tmp_path, DOCUMENTED), path) == owned_by


@pytest.mark.parametrize(
    ("line", "taken", "left"),
    [
        ("docs/* @a", ["docs/x.md"], ["docs/in/x.md", "src/docs/x.md"]),
        ("/a/**/b @a", ["a/b", "a/x/y/b", "a/b/inside"], ["x/a/b", "a/xb"]),
        ("a/** @a", ["a/b", "a/b/c"], ["a", "x/a/b"]),
        ("*.toml @a", ["x.toml", "a/b/x.toml", "my file.toml"], ["x.toml.bak"]),
        ("/plugins/kda @a", ["plugins/kda/x.py", "plugins/kda"], ["plugins/kda2/x.py"]),
        ("/plugins/kda/ @a", ["plugins/kda/in/x.py"], ["plugins/kda", "x/plugins/kda/x.py"]),
        ("/pl?gins/ @a", ["plugins/x"], ["plgins/x", "pl/gins/x"]),
        (r"/my\ plugins/ @a", ["my plugins/x"], ["my/x", "plugins/x"]),
        (r"a\ b.txt @a", ["deep/a b.txt"], ["a", "b.txt"]),
        ("/tab/\t@a", ["tab/x"], ["x"]),
        ("  /indented/  @a  ", ["indented/x"], ["x"]),
        ("/windows/ @a\r", ["windows/x"], ["x"]),
        ("/caf\N{LATIN SMALL LETTER E WITH ACUTE}/ @a", ["café/x"], ["cafe/x"]),
    ],
)
def test_a_pattern_takes_what_it_takes_on_github(
    line: str, taken: list[str], left: list[str], tmp_path: Path
) -> None:
    file = written(tmp_path, f"{line}\n")
    assert file.skipped == ()
    assert [owners(file, path) for path in taken] == [("@a",)] * len(taken)
    assert [owners(file, path) for path in left] == [None] * len(left)


@pytest.mark.parametrize(
    "line",
    [
        "!/a/ @b",
        "/[ab]/ @b",
        r"\#a @b",
        "/a/ b",
        "/a/ @b/",
        "/a/ @b @c/d/e",
        "/a/ @b name",
        "/ @b",
        "/a***/ @b",
        "* @b/c\\ d",
    ],
)
def test_a_line_that_github_does_not_read_is_skipped_whole_and_said(
    line: str, tmp_path: Path
) -> None:
    file = written(tmp_path, f"* @all\n{line}\n")
    assert [number for number, _ in file.skipped] == [2]
    for path in ("a", "a/x", "b/x", "#a", "x"):
        assert owners(file, path) == ("@all",)


def test_asterisks_that_could_take_minutes_are_skipped_and_said(tmp_path: Path) -> None:
    fair = r"/*a*b*/*/*/*/**/x/**/y/z\*\*\*\**"  # four of them escaped
    stars, folders = "*a*a*a*a", "/a/**/a/**/a/**/a/**"
    file = written(tmp_path, f"* @all\n{fair} @fair\n{stars} @stars\n{folders} @folders\n")
    assert [number for number, _ in file.skipped] == [3, 4]
    assert all("more than 3 asterisks in one name" in reason for _, reason in file.skipped)
    assert owners(file, "a" * 100) == ("@all",)
    assert owners(file, "a/" * 100 + "a") == ("@all",)
    assert owners(file, "xaxbx/p/q/r/x/y/z****w") == ("@fair",)


def test_owners_are_teams_users_and_addresses_until_a_comment(tmp_path: Path) -> None:
    file = written(tmp_path, "/a/ @org/team @user x.y@example.com # @other\n/b/ @org/Team#1\n")
    assert owners(file, "a/x") == ("@org/team", "@user", "x.y@example.com")
    assert [number for number, _ in file.skipped] == [2]
    (rule,) = file.matching("a/x")
    assert rule.names("@ORG/Team")  # GitHub's names differ by more than case
    assert not rule.names("@org/tea")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n   # here @a\n"])
def test_a_file_may_say_nothing(text: str, tmp_path: Path) -> None:
    assert owners(written(tmp_path, text), "x") is None


def test_a_byte_order_mark_is_no_part_of_the_first_pattern(tmp_path: Path) -> None:
    assert owners(written(tmp_path, "\N{BYTE ORDER MARK}/a/ @a\n"), "a/x") == ("@a",)


# --- which file counts ------------------------------------------------------------------------


def test_the_first_place_that_has_one_is_the_only_one(tmp_path: Path) -> None:
    assert find_codeowners(tmp_path) is None
    for place in ("docs/CODEOWNERS", "CODEOWNERS", ".github/CODEOWNERS"):
        written(tmp_path, f"* @{place.partition('/')[0].strip('.').lower()}\n", place)
        found = find_codeowners(tmp_path)
        assert found is not None
        assert found.file == tmp_path / place
        assert found.root == tmp_path
    assert owners(found, "x") == ("@github",)


def test_a_workspace_inside_a_repository_has_the_repository_s(tmp_path: Path) -> None:
    inner = tmp_path / "ml" / "seams"
    inner.mkdir(parents=True)
    written(tmp_path, "* @root\n", ".github/CODEOWNERS")
    assert find_codeowners(inner) is None  # no repository: nothing above is asked
    (tmp_path / ".git").write_text("gitdir: elsewhere\n")  # as a linked work tree has it
    written(inner, "* @inner\n")  # which GitHub does not read
    found = find_codeowners(inner)
    assert found is not None
    assert (found.file, found.root) == (tmp_path / ".github" / "CODEOWNERS", tmp_path)


@pytest.mark.parametrize("name", ["docs", ".github"])
def test_a_repository_may_be_called_like_a_folder_of_codeowners(name: str, tmp_path: Path) -> None:
    repository = tmp_path / name
    (repository / ".git").mkdir(parents=True)
    (repository / "CODEOWNERS").write_text("/src/ @a\n")
    found = find_codeowners(repository / "src")
    named = read_codeowners(repository / "CODEOWNERS")
    assert found is not None
    assert found.root == named.root == repository.resolve()


def test_a_file_that_github_would_not_load_is_a_refusal(tmp_path: Path) -> None:
    big, binary = tmp_path / "big", tmp_path / "binary"
    big.write_bytes(b"#" * (MAX_BYTES + 1))
    binary.write_bytes(b"/a/ @b \xff\n")
    for file in (big, binary, tmp_path / "none"):
        with pytest.raises(Refusal) as refused:
            read_codeowners(file)
        (fault,) = refused.value.reasons
        assert isinstance(fault, CodeownersInvalid)
        assert fault.file == str(file)


# --- the globs, by git itself -----------------------------------------------------------------

PATHS = [
    "a",
    "b.py",
    "x y.py",
    "src/a",
    "src/b.py",
    "src/deep/a/b.py",
    "src/deep/down/c.txt",
    "docs/in/x.md",
    "docs/x.md",
    "logs/today",
    "build/logs/today",
    "src/build/logs/old/x",
    "Src/b.py",
]
PATTERNS = [
    "*",
    "*.py",
    "/*.py",
    "src",
    "src/",
    "/src/",
    "/src",
    "deep/",
    "src/deep",
    "src/*/a",
    "src/**/a",
    "src/**",
    "**/logs",
    "**/logs/",
    "/build/logs/",
    "/build/**/today",
    "?",
    "/???/",
    "*.m?",
    r"x\ y.py",
    "a",
    "d*n",
    "/docs/in/",
    "s*/*/*/b.py",
]


def test_git_reads_every_pattern_alike(tmp_path: Path) -> None:
    """A pattern that ends in ``/*`` is where GitHub differs, and is tested above."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    for path in PATHS:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text("")
    for pattern in PATTERNS:
        (tmp_path / ".git" / "info" / "exclude").write_text(f"{pattern}\n")
        asked = subprocess.run(
            ["git", "check-ignore", "--no-index", "-z", "--stdin"],
            cwd=tmp_path,
            input="\0".join(PATHS),
            capture_output=True,
            text=True,
            check=False,
        )
        by_git = {path for path in asked.stdout.split("\0") if path}
        file = written(tmp_path, f"{pattern} @a\n", "docs/CODEOWNERS")
        ours = {path for path in PATHS if owners(file, path)}
        assert ours == by_git, pattern
        assert by_git, pattern
