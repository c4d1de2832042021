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


def test_the_site_fetches_nothing_from_elsewhere(repository: Path) -> None:
    settings = yaml.safe_load((repository / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["name"] == "mkdocs"  # a theme that is in the generator itself
    assert settings["theme"]["highlightjs"] is False
    assert not {"extra_css", "extra_javascript"} & settings.keys()
