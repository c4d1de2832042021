"""``registry docs``: the pages of the documentation, which the package carries."""

import difflib
from pathlib import Path
from typing import Final

import click

from megatron_seams.cli.rows import Row, draw_rows
from megatron_seams.cli.screen import console

#: The folder of the pages; in a source tree it is a link to docs/.
PAGES: Final = Path(__file__).resolve().parent.parent / "pages"
_PAGE, _SCHEMA = ".md", ".schema.json"


def pages() -> dict[str, Path]:
    """Name -> file of every page, ``errors``, and of every schema, ``recipe.schema.json``."""
    found = {file.name.removesuffix(_PAGE): file for file in sorted(PAGES.glob(f"*{_PAGE}"))}
    schemas = sorted((PAGES / "schema").glob(f"*{_SCHEMA}"))
    return found | {file.name: file for file in schemas}


def _complete(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    return [name for name in pages() if name.startswith(begun)]


@click.command("docs", short_help="Read a page of the documentation.")
@click.argument("page", required=False, metavar="[PAGE]", shell_complete=_complete)
def docs_command(page: str | None) -> None:
    """Print a page of the documentation or a JSON Schema; without PAGE, list them."""
    known = pages()
    if page is None:
        rows = [Row(cells=[name], prose=[_title(file)]) for name, file in known.items()]
        draw_rows(console(), ("page", "title"), rows)
        return
    if page not in known:
        near = difflib.get_close_matches(page, known, n=1)
        advice = f"did you mean {near[0]}?" if near else "`registry docs` lists them"
        message = f"there is no page {page!r}; {advice}"
        raise click.BadParameter(message, param_hint="PAGE")
    text = known[page].read_text(encoding="utf-8")
    out = console()
    if out.is_terminal and known[page].suffix == _PAGE:
        from rich.markdown import Markdown

        out.print(Markdown(text, hyperlinks=False), soft_wrap=False)
    else:
        click.echo(text, nl=False)


def _title(file: Path) -> str:
    """A page's first heading; of a schema, its title."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == _PAGE:
        return text.partition("\n")[0].lstrip("# ")
    import json

    title: str = json.loads(text)["title"]
    return title
