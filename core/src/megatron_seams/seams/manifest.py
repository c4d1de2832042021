"""The tables and keys of a seam's manifest, ``seam.toml``.

A seam declares itself in data: reading a manifest runs no code of its package, so an audit never
runs the code that it audits.
"""

import datetime
import re
from typing import Any, Literal

import attrs
from attrs import field, validators
from packaging.specifiers import SpecifierSet

from megatron_seams.base.structure import KeyFault, structure
from megatron_seams.base.toml import TomlError, read_toml
from megatron_seams.base.validators import one_of, schema, sentence, specifier, version
from megatron_seams.errors import ManifestInvalid, ManifestUnreadable, SeamsError
from megatron_seams.families import NAME, Kind
from megatron_seams.seams.options import Option, keys_are_options
from megatron_seams.seams.tracking import Reference, listed_references, references

SCHEMA = 1
#: The manifest's name, in the folder of the seam's package.
MANIFEST = "seam.toml"
#: A manifest is a page of text; something larger is not a manifest.
MAX_BYTES = 64 * 1024

_OWNER = re.compile(r"@[A-Za-z0-9][A-Za-z0-9-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?\Z")

#: The keys of `[supports]`, each the name of a recipe setting.
CAPABILITIES = (
    "tensor-parallel",
    "sequence-parallel",
    "pipeline-parallel",
    "expert-parallel",
    "context-parallel",
    "packed-sequences",
    "inference",
)


def _name(_: Any, __: Any, value: str) -> None:
    if not NAME.match(value):
        message = f"expected a name like [a-z][a-z0-9_]*, found {value!r}"
        raise ValueError(message)


def _owner(_: Any, __: Any, value: str) -> None:
    if not _OWNER.match(value):
        message = f"expected a team handle like @organisation/team, found {value!r}"
        raise ValueError(message)


@attrs.frozen(kw_only=True)
class About:
    """``[seam]``: its name, family, owner and dates.

    Attributes:
        name: The seam's own name, and its entry point's; ``[a-z][a-z0-9_]*``.
        family: The family that it builds.
        summary: One sentence: what it computes, and the paper.
        owner: The team that answers for it, ``@organisation/team``; it owns the folder in
            CODEOWNERS.
        status: ``seam``, or ``experiment``: it is then used only by a recipe that names it.
        introduced: The day on which it was made.
        review_by: By this day its owner gives the reason why it is still here, or ``registry
            check`` fails.
    """

    name: str = field(validator=_name)
    family: str = field(validator=_name)
    summary: str = field(validator=sentence)
    owner: str = field(validator=_owner)
    status: str = field(default="seam", validator=one_of("seam", "experiment"))
    introduced: datetime.date
    review_by: datetime.date


@attrs.frozen(kw_only=True)
class Upstream:
    """``[upstream]``: what retires the seam.

    Attributes:
        fallback: ``native`` accepts the named upstream surface as the equivalent; ``refuse``
            accepts nothing.
        symbol_name: Upstream's constant for the layer (``MLA``).
        config_field: A field of upstream's configuration that makes the family an option.
        flag: A flag of upstream's command line that makes the family an option.
        native_since: The first release that has it, as far as the owner knows; ``registry check``
            reports a Megatron of that release or later that does not.
        tracking: References to the upstream work that can replace the seam, each
            ``owner/repository#number`` or an address; empty if there is none, which
            ``registry check`` asks for again at each review. A text is one reference.
    """

    fallback: str = field(validator=one_of("native", "refuse"))
    symbol_name: str | None = None
    config_field: str | None = None
    flag: str | None = None
    native_since: str | None = field(default=None, validator=validators.optional(version))
    tracking: str | tuple[str, ...] = field(default=(), validator=listed_references)

    def __attrs_post_init__(self) -> None:
        """Require one upstream name with ``native``, and none with ``refuse``."""
        named = [name for name in (self.symbol_name, self.config_field, self.flag) if name]
        if self.fallback == "native" and len(named) != 1:
            message = (
                'with fallback = "native" exactly one of symbol-name, config-field and flag says '
                f"what retires the seam; found {len(named)}"
            )
            raise ValueError(message)
        if self.fallback == "refuse" and (named or self.native_since):
            message = 'with fallback = "refuse" nothing upstream is accepted, so nothing is named'
            raise ValueError(message)

    @property
    def accepts(self) -> str | None:
        """The upstream name that is accepted as the equivalent, or None."""
        return self.symbol_name or self.config_field or self.flag

    @property
    def references(self) -> tuple[Reference, ...]:
        """The references of ``tracking``, each with its address where it has one."""
        return references(self.tracking)


@attrs.frozen(kw_only=True)
class Carrier:
    """``[carrier]``: the native slots that may carry the seam's layers, the best first.

    Attributes:
        slots: Fields of upstream's ``HybridStackSubmodules``.
        part: ``mixer`` if the hook gives the mixer of upstream's own ``MambaLayer``, ``layer`` if
            it gives the whole layer. Left out, it is the mixer in ``mamba_layer`` and the whole
            layer everywhere else.
        needs: Keywords of upstream's loop without which the layer cannot be built.
        takes: Further keywords that it takes, or does not need. With either key ``registry
            preview`` can judge an upgrade before it is made.
    """

    slots: tuple[str, ...] = field(validator=validators.min_len(1))
    part: str | None = field(default=None, validator=validators.optional(one_of("mixer", "layer")))
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()

    @property
    def declares_keywords(self) -> bool:
        """Whether the manifest says which keywords the layer takes."""
        return bool(self.needs or self.takes)

    def part_in(self, slot: str) -> Literal["mixer", "layer"]:
        """The part that the seam's hook builds when ``slot`` carries it."""
        if self.part == "layer" or (self.part is None and slot != "mamba_layer"):
            return "layer"
        return "mixer"


@attrs.frozen(kw_only=True)
class Placement:
    """``[feature]``: where a feature attaches.

    Attributes:
        placement: ``embedding``: its output is added to the word embedding. ``residual``: to the
            input of the layers that the recipe names.
    """

    placement: str = field(validator=one_of("embedding", "residual"))


@attrs.frozen(kw_only=True)
class Introduces:
    """``[family]``: a family that core does not list.

    Attributes:
        name: Its name, the same as the seam's ``family``.
        summary: One sentence about these layers; the same in every seam that introduces the family.
    """

    name: str = field(validator=_name)
    summary: str = field(validator=sentence)


@attrs.frozen(kw_only=True)
class Requires:
    """``[requires]``: the Megatron releases that the seam was written for.

    Attributes:
        megatron_core: The range of the releases, ``>=0.17,<0.20``.
    """

    megatron_core: str = field(validator=specifier)

    @property
    def range(self) -> SpecifierSet:
        """The range as packaging compares it."""
        return SpecifierSet(self.megatron_core)


@attrs.frozen(kw_only=True)
class Supports:
    """``[supports]``: the settings that the seam supports; any other is refused.

    Attributes:
        tensor_parallel: Its weights are divided over tensor-parallel ranks.
        sequence_parallel: It takes and returns one piece of the sequence on each of these ranks.
        pipeline_parallel: Its layers may be on any stage.
        expert_parallel: It works beside experts that are divided over ranks.
        context_parallel: It mixes a sequence whose pieces are on several ranks.
        packed_sequences: It separates documents that share a row (``packed_seq_params``).
        inference: It decodes token by token (``inference_context``).
    """

    tensor_parallel: bool = False
    sequence_parallel: bool = False
    pipeline_parallel: bool = False
    expert_parallel: bool = False
    context_parallel: bool = False
    packed_sequences: bool = False
    inference: bool = False

    def __getitem__(self, capability: str) -> bool:
        """Look up one of :data:`CAPABILITIES` by its dashed name."""
        return bool(getattr(self, capability.replace("-", "_")))


@attrs.frozen(kw_only=True)
class Manifest:
    """A whole ``seam.toml``.

    Attributes:
        schema: The version of the format: 1.
        seam: Its name, family, owner and dates.
        upstream: The upstream surface that retires it.
        requires: The Megatron that it needs.
        carrier: For a layer: the slots that may carry it. Either this or ``feature``.
        feature: For a feature: the place where it attaches. Either this or ``carrier``.
        family: Only for a family that core does not list.
        supports: The settings that it supports.
        options: The options that a recipe may give it, as data; `resolve` and `check` then refuse
            what is not among them. Left out, only the plugin's own class checks them.
    """

    schema: int = field(validator=schema(SCHEMA))
    seam: About
    upstream: Upstream
    requires: Requires
    carrier: Carrier | None = None
    feature: Placement | None = None
    family: Introduces | None = None
    supports: Supports = field(factory=Supports)
    options: dict[str, Option] | None = field(default=None, validator=keys_are_options)

    def __attrs_post_init__(self) -> None:
        """Check the keys against one another."""
        if (self.carrier is None) == (self.feature is None):
            message = "exactly one of [carrier] (a layer) and [feature] (a feature) is required"
            raise ValueError(message)
        if self.family is not None and self.family.name != self.seam.family:
            message = (
                f"[family] introduces {self.family.name!r} but the seam builds {self.seam.family!r}"
            )
            raise ValueError(message)

    @property
    def kind(self) -> Kind:
        """Whether the seam builds layers or a feature."""
        return "block" if self.feature is None else "feature"

    @property
    def experiment(self) -> bool:
        """Whether it is still on trial."""
        return self.seam.status == "experiment"

    @property
    def hook(self) -> str:
        """The hook that the plugin must implement."""
        suffix = "layer" if self.kind == "block" else "feature"
        return f"{self.seam.family}_{suffix}"

    @property
    def options_hook(self) -> str:
        """The hook that a plugin with options implements beside it."""
        return f"{self.seam.family}_options"


def parse_manifest(data: bytes, *, file: str) -> tuple[Manifest | None, tuple[SeamsError, ...]]:
    """Read a ``seam.toml``.

    Args:
        data: Its bytes.
        file: Its path, for the messages.

    Returns:
        The manifest and no fault, or None and every fault.
    """
    asked = "a seam manifest that can be read"
    if len(data) > MAX_BYTES:
        fault: SeamsError = ManifestUnreadable(
            asked=asked,
            found=f"{len(data)} bytes; a manifest has at most {MAX_BYTES}",
            next="check what was packaged as seam.toml",
            file=file,
        )
        return None, (fault,)
    try:
        table = read_toml(data)
    except TomlError as error:
        fault = ManifestUnreadable(
            asked=asked,
            found=str(error),
            next="correct the file and reinstall the plugin",
            file=file,
        )
        return None, (fault,)
    manifest, faults = structure(Manifest, table)
    return manifest, tuple(_invalid(fault, file) for fault in faults)


def _invalid(fault: KeyFault, file: str) -> ManifestInvalid:
    return ManifestInvalid(
        asked="a valid seam manifest",
        found=fault.message,
        next="correct the key and reinstall the plugin",
        file=file,
        key=fault.key or None,
    )
