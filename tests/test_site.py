"""The pages of the site: each is in its table of contents, and every link into a page arrives."""

import re
from pathlib import Path

import yaml


def headings(text: str) -> set[str]:
    """The anchors of a page's headings, as the site and GitHub make them."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#+ (.*)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", it).strip().lower().replace(" ", "-") for it in found}


def pages(repository: Path) -> list[Path]:
    return [*sorted(repository.glob("*.md")), *sorted((repository / "docs").glob("*.md"))]


def contents(entries: object) -> list[str]:
    """The files of a table of contents, at any depth."""
    if isinstance(entries, str):
        return [entries]
    inner = entries.values() if isinstance(entries, dict) else entries
    assert not isinstance(inner, int)
    return [file for entry in inner for file in contents(entry)]  # type: ignore[attr-defined]


def test_every_page_stands_in_the_contents_once(repository: Path) -> None:
    settings = yaml.safe_load((repository / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = contents(settings["nav"])
    assert len(listed) == len(set(listed))
    written = {file.name for file in pages(repository)} - {"README.md"}
    assert set(listed) == written | {"index.md", "api.md"}


def test_every_link_into_a_page_arrives_at_a_heading(repository: Path) -> None:
    seen = 0
    for file in pages(repository):
        text = file.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", text):
            place = file.parent / target if target else file
            assert anchor in headings(place.read_text(encoding="utf-8")), (
                file.name,
                target,
                anchor,
            )
            seen += 1
    assert seen > 3


def test_a_page_of_the_site_links_to_nothing_that_the_site_has_not(repository: Path) -> None:
    """A file that is there may be no page; the root's pages are ``../`` from docs/."""
    docs, root = repository / "docs", {file.name for file in repository.glob("*.md")}
    seen = 0
    for file in sorted(docs.glob("*.md")):
        text = file.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(<?(?!https:)([^)#>\s]+)", text):
            outside = target.removeprefix("../")
            there = (docs / target).is_file() and not target.startswith((".", "/"))
            assert there or outside in root, (file.name, target)
            seen += 1
    assert seen > 15


def test_what_the_site_is_made_from_is_there(repository: Path) -> None:
    settings = yaml.safe_load((repository / "mkdocs.yml").read_text(encoding="utf-8"))
    (python,) = (it["mkdocstrings"]["handlers"]["python"] for it in settings["plugins"][1:])
    (hook,) = settings["hooks"]
    assert all((repository / place).exists() for place in (hook, *python["paths"]))
    read = set(re.findall(r'"([A-Z]+\.md)"', (repository / hook).read_text(encoding="utf-8")))
    assert read == {file.name for file in repository.glob("*.md")}


def test_warnings_of_the_build_are_counted(repository: Path) -> None:
    """A quiet mkdocs hides them from --strict, and a link to nowhere builds."""
    (build,) = re.findall(r"mkdocs build.*", (repository / "Makefile").read_text(encoding="utf-8"))
    assert "--strict" in build
    assert "quiet" not in build


def test_the_site_fetches_nothing_from_elsewhere(repository: Path) -> None:
    settings = yaml.safe_load((repository / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["name"] == "mkdocs"  # a theme that is in the generator itself
    assert settings["theme"]["highlightjs"] is False
    assert not {"extra_css", "extra_javascript"} & settings.keys()
