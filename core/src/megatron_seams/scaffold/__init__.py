"""A new seam's package, made from the templates beside this file.

The seam installs, is listed and passes the conformance kit; its author writes the block.
"""

import datetime
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Final, Literal

import attrs
import jinja2
from packaging.requirements import Requirement
from packaging.version import Version

from megatron_seams._version import __version__
from megatron_seams.base.files import replace_text
from megatron_seams.errors import Refusal
from megatron_seams.families import BUILT_IN, Kind
from megatron_seams.seams.manifest import parse_manifest

_HERE = Path(__file__).parent
#: The time from a new seam's first day to its review date.
_REVIEW: Final = datetime.timedelta(days=182)
_COMMON: Final = {
    "pyproject.toml": "pyproject.toml.jinja",
    "README.md": "README.md.jinja",
    "LICENSE": "LICENSE.jinja",
    ".gitignore": "gitignore.jinja",
    "src/{package}/py.typed": "py.typed.jinja",
    "src/{package}/__init__.py": "init.py.jinja",
    "src/{package}/seam.toml": "seam.toml.jinja",
}
#: File of the package -> its template.
_FILES: Final[dict[Kind, dict[str, str]]] = {
    "block": _COMMON
    | {
        "src/{package}/plugin.py": "layer_plugin.py.jinja",
        "src/{package}/mixer.py": "mixer.py.jinja",
        "tests/test_conformance.py": "layer_test.py.jinja",
        "tests/test_values.py": "layer_values.py.jinja",
    },
    "feature": _COMMON
    | {
        "src/{package}/plugin.py": "feature_plugin.py.jinja",
        "src/{package}/module.py": "module.py.jinja",
        "tests/test_conformance.py": "feature_test.py.jinja",
        "tests/test_values.py": "feature_values.py.jinja",
    },
}


@attrs.frozen(kw_only=True)
class NewSeam:
    """A new seam: its name, family and owner.

    Attributes:
        name: The seam's name.
        family: The family that it builds.
        owner: The team that answers for it.
        kind: Whether it builds layers or a feature.
        placement: Where a feature attaches.
        introduced: Its first day.
    """

    name: str
    family: str
    owner: str
    kind: Kind
    placement: Literal["embedding", "residual"] = "embedding"
    introduced: datetime.date

    @property
    def distribution(self) -> str:
        """The name of its distribution and of its folder, ``seam-kda``."""
        return f"seam-{self.name.replace('_', '-')}"

    @property
    def package(self) -> str:
        """The name of its package, ``seam_kda``."""
        return f"seam_{self.name}"

    def files(self) -> dict[str, str]:
        """Path inside the project -> text.

        Raises:
            Refusal: The name, family or owner is not valid in a manifest.
        """
        engine = jinja2.Environment(  # noqa: S701 - Python and TOML, of validated names
            loader=jinja2.FileSystemLoader(_HERE),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        engine.filters["quoted"] = json.dumps  # a basic string of TOML is one of JSON
        known = BUILT_IN.get(self.family)
        files = {
            path.format(package=self.package): engine.get_template(template).render(
                seam=self,
                known=known,
                camel="".join(part.capitalize() for part in self.name.split("_")),
                review_by=self.introduced + _REVIEW,
                megatron=_megatron(),
                core=_compatible(),
                python=importlib.metadata.metadata("megatron-seams")["Requires-Python"],
            )
            for path, template in _FILES[self.kind].items()
        }
        manifest = f"src/{self.package}/seam.toml"
        _, faults = parse_manifest(files[manifest].encode(), file=manifest)
        if faults:
            raise Refusal(
                attrs.evolve(
                    fault,
                    asked=f"a new seam {self.name!r} of {self.family!r}, owned by {self.owner!r}",
                    next="correct NAME, --family or --owner",
                    file=None,
                )
                for fault in faults
            )
        return files

    def write(self, folder: Path) -> Path:
        """Write the project below ``folder``, whole or not at all, and return its own folder.

        Raises:
            Refusal: As for :meth:`files`.
            FileExistsError: ``folder`` has an entry of that name.
            OSError: It cannot be written.
        """
        files = self.files()
        project = folder / self.distribution
        project.mkdir(parents=True)
        try:
            for path, text in files.items():
                (project / path).parent.mkdir(parents=True, exist_ok=True)
                replace_text(project / path, text)
        except BaseException:
            shutil.rmtree(project, ignore_errors=True)
            raise
        return project


def _compatible() -> str:
    """The releases of core that keep what this one promises."""
    major, minor, *_ = Version(__version__).release
    least, below = f"{major}.{minor}", f"{major + 1}" if major else f"0.{minor + 1}"
    return f">={least},<{below}"


def _megatron() -> str:
    """The Megatron releases that the runtime supports, from this distribution's metadata."""
    for line in importlib.metadata.requires("megatron-seams") or ():
        needed = Requirement(line)
        if needed.name == "megatron-core":
            return ",".join(sorted((str(part) for part in needed.specifier), reverse=True))
    return ">=0.17"
