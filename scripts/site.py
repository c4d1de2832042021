"""The site's pages from outside docs/: the pages of the repository's root, and the Python API.

mkdocs calls it (mkdocs.yml). The API's names are those of ``import megatron_seams``.
"""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).resolve().parent.parent
#: Page of the site -> file of the root.
_PAGES = {
    "index.md": "README.md",
    **{name: name for name in ("CONTRIBUTING.md", "RELEASING.md", "SECURITY.md", "CHANGELOG.md")},
}
_API = """\
# Python API

The names of `import megatron_seams as ms`, from their docstrings; [From Python](python.md) shows
them at work.
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for name, source in _PAGES.items():
        text = (_ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_linked(text)))
    files.append(File.generated(config, "api.md", content=_api()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links out of docs/ to the pages that the root's files have here."""
    return re.sub(r"\]\(\.\./([A-Z]+\.md)", r"](\1", markdown)


def _linked(text: str) -> str:
    """A file of the root with its links to other pages as theirs; to other files they are words."""
    pages = {file.name for file in (_ROOT / "docs").glob("*.md")} | {*_PAGES}

    def link(found: re.Match[str]) -> str:
        words, target = found.groups()
        page = target.removeprefix("docs/")
        if target.startswith(("https:", "#")) or page.partition("#")[0] in pages:
            return f"[{words}]({page})"
        return words

    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", link, text)


def _api() -> str:
    sys.path.insert(0, str(_ROOT / "core" / "src"))
    import megatron_seams

    homes = {name: megatron_seams._HOMES[name] for name in megatron_seams.__all__ if name[0] != "_"}
    ordered = sorted(homes, key=lambda name: (name[0].isupper(), name))
    return "\n".join([_API, *(f"::: megatron_seams.{homes[name]}.{name}\n" for name in ordered)])
