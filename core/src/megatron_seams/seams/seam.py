"""A seam that was found: installed, in a source tree or in a wheel."""

from pathlib import Path

import attrs

from megatron_seams.base.distributions import Installed
from megatron_seams.errors import SeamsError
from megatron_seams.seams.manifest import Manifest


@attrs.frozen(kw_only=True)
class Seam:
    """A usable seam: its manifest and where it was found.

    Attributes:
        manifest: The validated manifest.
        package: The dotted package of the entry point, ``acme_seams.kda``.
        distribution: The distribution that provides it.
        version: That distribution's version.
        directory: The package's folder.
        manifest_digest: SHA-256 of the manifest's bytes.
        installed: The distribution's metadata; None where it is not installed.
    """

    manifest: Manifest
    package: str
    distribution: str
    version: str
    directory: Path
    manifest_digest: str = attrs.field(repr=False)
    installed: Installed | None = attrs.field(default=None, eq=False, repr=False)

    @property
    def name(self) -> str:
        """The seam's own name, unique in an environment."""
        return self.manifest.seam.name

    @property
    def family(self) -> str:
        """The family that it builds."""
        return self.manifest.seam.family

    @property
    def owner(self) -> str:
        """The team that answers for it."""
        return self.manifest.seam.owner

    @property
    def claim(self) -> str:
        """How messages name a claimant: seam, distribution, version and owner."""
        return f"seam {self.name!r} of {self.distribution} {self.version} (owner {self.owner})"


@attrs.frozen(kw_only=True)
class BrokenSeam:
    """A seam that cannot be used.

    Attributes:
        name: The name of its entry point, or of what it was looked for in.
        package: The package that its entry point names; None where the entry point itself is
            damaged, which then claims no name that another seam could have.
        distribution: The distribution that it is of.
        version: That distribution's version.
        faults: Everything that is wrong with it.
        manifest: Its manifest, where that could be read.
    """

    name: str
    package: str | None = None
    distribution: str
    version: str
    faults: tuple[SeamsError, ...]
    manifest: Manifest | None = None
