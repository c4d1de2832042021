"""Links of the page: to files of the workspace, relative to the page, and to papers."""

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import quote

import attrs

from megatron_seams.governance.codeowners import Codeowners
from megatron_seams.governance.ownership import seam_folders, source_of
from megatron_seams.seams.manifest import MANIFEST
from megatron_seams.seams.seam import Seam

_PAPER: Final = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@attrs.frozen
class Link:
    """A text with an address; without one where the page does not know where it will lie."""

    text: str
    href: str = ""


def file_link(file: Path, text: str, page: Path | None, *, line: int | None = None) -> Link:
    """A link to a file or folder, relative to the folder of ``page``."""
    if page is None:
        return Link(text)
    relative = os.path.relpath(file.resolve(), page.resolve().parent)
    return Link(text, f"{quote(Path(relative).as_posix())}{'' if line is None else f'#L{line}'}")


def papers_of(text: str) -> tuple[Link, ...]:
    """The papers that a text names, each with its address."""
    found = dict.fromkeys(_PAPER.findall(text))
    return tuple(Link(f"arXiv:{number}", f"https://arxiv.org/abs/{number}") for number in found)


@attrs.frozen(kw_only=True)
class OwnerLines:
    """The line of CODEOWNERS that decides who owns each seam.

    Attributes:
        codeowners: The file; None without one.
        page: The page that links to it; None for no links.
    """

    codeowners: Codeowners | None
    page: Path | None

    def of(self, seams: tuple[Seam, ...]) -> dict[str, Link]:
        """Seam name -> its line, for those whose source is in the tree."""
        if self.codeowners is None:
            return {}
        folders = seam_folders(self.codeowners.root)
        found = {}
        for seam in seams:
            for source in source_of(seam, folders)[:1]:
                path = (source / MANIFEST).relative_to(self.codeowners.root).as_posix()
                for rule in self.codeowners.matching(path)[:1]:
                    text = f"CODEOWNERS line {rule.line}"
                    file = self.codeowners.file
                    found[seam.name] = file_link(file, text, self.page, line=rule.line)
        return found
