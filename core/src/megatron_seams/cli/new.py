"""``registry new``: write the package of a new seam, in which only the block is missing."""

import datetime
import os
import shlex
from pathlib import Path
from typing import Literal

import click

from megatron_seams.cli.common import not_written
from megatron_seams.cli.complete import families
from megatron_seams.cli.screen import console
from megatron_seams.families import BUILT_IN, Kind
from megatron_seams.governance.codeowners import find_codeowners
from megatron_seams.scaffold import NewSeam


@click.command("new", short_help="Write the package of a new seam.")
@click.argument("name")
@click.option(
    "--family",
    required=True,
    metavar="F",
    shell_complete=families,
    help="The family that it builds.",
)
@click.option(
    "--owner",
    required=True,
    metavar="@team",
    help="The team that answers for it, in CODEOWNERS too.",
)
@click.option("--feature", is_flag=True, help="F is a feature, which attaches beside the layers.")
@click.option(
    "--placement",
    type=click.Choice(["embedding", "residual"]),
    help="Where the feature attaches: the word embedding (default), or layers that a recipe names.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="DIRECTORY",
    help="Where to put the package's folder (default: the working directory).",
)
def new_command(
    name: str,
    family: str,
    owner: str,
    feature: bool,
    placement: Literal["embedding", "residual"] | None,
    out: Path,
) -> None:
    """Write the package of a new seam NAME: it installs, is listed, and passes the conformance kit.

    The seam is an experiment: a model uses it only if its recipe names it. Go on with
    `registry docs write-a-seam`.
    """
    known = BUILT_IN.get(family)
    feature = feature or placement is not None
    kind: Kind = "feature" if feature or (known and known.kind == "feature") else "block"
    if known is not None and known.kind != kind:
        message = f"{family} is a {known.kind}: {known.summary}"
        raise click.BadParameter(message, param_hint="--placement" if placement else "--feature")
    made = NewSeam(
        name=name,
        family=family,
        owner=owner,
        kind=kind,
        placement=placement or "embedding",
        introduced=datetime.date.today(),
    )
    try:
        project = made.write(out)
    except FileExistsError as error:
        raise click.BadParameter(f"{error.filename} is there already", param_hint="NAME") from error
    except OSError as error:
        raise not_written(out, error, "--out") from error
    say = console()
    say.print(f"seam {name}: {project}", markup=False)
    block = project / "src" / made.package / ("module.py" if kind == "feature" else "mixer.py")
    for line in (
        f"to write: {block}, and in seam.toml each 'To be written'",
        _owners_line(project, owner),
        f"to try: pip install -e {shlex.quote(f'{project}[test]')} && registry list && "
        f"pytest {shlex.quote(str(project))}",
    ):
        say.print(line, markup=False)


def _owners_line(project: Path, owner: str) -> str:
    """The line of CODEOWNERS for a project; its path begins at the repository's root."""
    folder = project.resolve()
    root = next((it for it in folder.parents if (it / ".git").exists()), None)
    known = None if root is None else find_codeowners(root)
    file = "CODEOWNERS" if known is None else os.path.relpath(known.file)
    if root is None:
        return (
            f"to add to {file}, with the path from your repository's root: "
            f"{_owned(Path(project.name))} {owner}"
        )
    return f"to add to {file}: {_owned(folder.relative_to(root))} {owner}"


def _owned(path: Path) -> str:
    # Text after a blank is an owner.
    return f"/{path.as_posix()}/".replace(" ", "\\ ")
