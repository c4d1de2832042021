"""Pages of the report for its tests, and what stands on one."""

from html.parser import HTMLParser
from typing import Any

from megatron_seams.errors import ManifestMissing
from megatron_seams.report import render
from megatron_seams.seams.seam import BrokenSeam
from seam_support import TODAY, environment, make_seam, recipe

MODEL = {"tokens": {"K": "kda", "N": "gla"}, "policy": {"experiments": ["gla"]}}


def page_of(pattern: str = "MK*|NKE", **options: Any) -> str:
    """A page with three seams, one of them on trial and one broken, and a model."""
    kda = make_seam("kda", fallback="native", accepts={"symbol-name": "KDA", "tracking": "PR 7"})
    lost = BrokenSeam(
        name="lost",
        distribution="acme-lost",
        version="3.1",
        faults=(ManifestMissing(asked="a", found="no package", next="c", subject="lost"),),
    )
    where = environment(kda, make_seam("gla", "gla", status="experiment"), broken=[lost])
    models = [("model.toml", recipe(pattern, **MODEL))]
    return render(where, models, today=options.pop("today", TODAY))


class PageText(HTMLParser):
    """The text of a page by element, and every attribute that could fetch something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []
        self.links: list[tuple[str, str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "  # two cells of a table are two words
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster") or name[:2] == "on":
                self.links.append((tag, name, value or ""))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["style"], ["script"]):
            self.text += data


def words(page: str) -> str:
    return " ".join(PageText(page).text.split())
