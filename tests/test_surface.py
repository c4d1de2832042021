"""The native surface: what the installed Megatron's source says, and nothing that it does not."""

import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from packaging.version import Version

from megatron_seams.errors import (
    MegatronMissing,
    SurfaceUnknown,
    SymbolUnmapped,
)
from megatron_seams.planning.environment import Environment, read_environment
from megatron_seams.upstream.locate import importable_megatron, open_megatron
from megatron_seams.upstream.settings import read_settings
from megatron_seams.upstream.surface import NativeSurface, read_surface
from seam_support import SYMBOLS, environment, make_seam, plan, reasons, recipe, run_python

ALLOCATION = "core/models/hybrid/hybrid_layer_allocation.py"
STACK = "core/models/hybrid/hybrid_block.py"
#: Everything that any reader below opens.
FILES = (
    "core/package_info.py",
    ALLOCATION,
    STACK,
    "core/models/hybrid/hybrid_model.py",
    "core/model_parallel_config.py",
    "core/transformer/transformer_config.py",
)


@pytest.fixture(scope="module")
def installed() -> Path:
    """The ``megatron`` folder of the importable Megatron."""
    source, notes = importable_megatron()
    assert source is not None
    assert not notes
    return Path(source.origin)


@pytest.fixture
def tree(installed: Path, tmp_path: Path) -> Path:
    """A copy of the files that are read, in a folder that may be edited."""
    for name in FILES:
        target = tmp_path / "tree" / "megatron" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(installed / name, target)
    return tmp_path / "tree"


def edit(tree: Path, name: str, change: Callable[[str], str]) -> None:
    """Change a file of the copy; a change that finds nothing to change is a stale test."""
    file = tree / "megatron" / name
    text = file.read_text()
    changed = change(text)
    assert changed != text
    file.write_text(changed)


def read(path: Path) -> NativeSurface:
    return read_surface(open_megatron(path))


def where(tree: Path) -> Environment:
    """The environment as every command sees it, with the copy as its Megatron."""
    return read_environment(tree)


def replaced(old: str, new: str, count: int = -1) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, count)


# --- the installed Megatron -------------------------------------------------------------------


def test_the_installed_megatron_has_the_surface_of_the_contracts_table(installed: Path) -> None:
    found = read(installed)
    assert found.version is not None
    assert found.version.release[:2] == (0, 19)
    assert [(s.constant, s.symbol, s.slot, s.family) for s in found.symbols] == [
        ("MAMBA", "M", "mamba_layer", "mamba"),
        ("GDN", "G", "gdn_layer", "gdn"),
        ("ATTENTION", "*", "attention_layer", "attention"),
        ("DS_ATTENTION", "D", "dsa_layer", "dsa"),
        ("MLA", "+", "mla_layer", "mla"),
        ("MLP", "-", "mlp_layer", "mlp"),
        ("MOE", "E", "moe_layer", "moe"),
    ]
    assert found.separators == ("|", "/")
    assert {symbol.slot for symbol in found.symbols} <= set(found.slots)
    assert found.unmapped() == ()
    assert len(found.digest) == 64


def test_the_surface_that_the_other_tests_plan_against_is_the_installed_one(
    installed: Path,
) -> None:
    assert read(installed).symbols == SYMBOLS


@pytest.mark.parametrize(
    ("constants", "forbidden"),
    [
        ({"ATTENTION", "DS_ATTENTION"}, True),
        ({"ATTENTION", "MLA"}, True),
        ({"ATTENTION", "DS_ATTENTION", "MLA"}, True),
        ({"DS_ATTENTION", "MLA"}, False),
        ({"ATTENTION", "MAMBA", "GDN", "MLP", "MOE"}, False),
        ({"MLA", "MAMBA", "MOE"}, False),
        (set(), False),
    ],
)
def test_upstream_forbids_attention_beside_latent_or_sparse_attention(
    installed: Path, constants: set[str], forbidden: bool
) -> None:
    answer = read(installed).forbidden(constants)
    assert bool(answer) == forbidden
    assert all("Attention" in text for text in answer)


def test_the_version_is_read_from_the_source_and_agrees_with_the_distribution(
    installed: Path,
) -> None:
    from importlib.metadata import version

    assert open_megatron(installed).version() == Version(version("megatron-core"))


def test_reading_the_importable_megatron_imports_none_of_it(tmp_path: Path) -> None:
    program = (
        "import sys; from megatron_seams.planning.environment import read_environment;"
        "found = read_environment(); found.settings();"
        "print(found.surface.version, [n for n in sys.modules if n.partition('.')[0] in"
        " ('megatron', 'torch')])"
    )
    done = run_python("-c", program, cwd=tmp_path, code=0)
    assert done.stdout.startswith("0.19.")
    assert done.stdout.split(maxsplit=1)[1].strip() == "[]"


def test_the_settings_of_the_installed_megatron_are_read_too(installed: Path) -> None:
    known = read_settings(open_megatron(installed))
    for key in ("hidden_size", "num_moe_experts", "sequence_parallel", "max_sequence_length"):
        assert known.knows(key), key
    assert not known.knows("hidden_sise")


# --- the same text from elsewhere -------------------------------------------------------------


def archive_wheel(tree: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in FILES:
            archive.write(tree / "megatron" / name, f"megatron/{name}")
    return path


def archive_sdist(tree: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in FILES:
            archive.add(tree / "megatron" / name, f"megatron_core-0.19.2/megatron/{name}")
    return path


def test_folder_wheel_and_sdist_of_one_text_have_one_surface(tree: Path, tmp_path: Path) -> None:
    folder = read(tree)
    wheel = read(archive_wheel(tree, tmp_path / "megatron_core-0.19.2-py3-none-any.whl"))
    sdist = read(archive_sdist(tree, tmp_path / "megatron_core-0.19.2.tar.gz"))
    checkout = read(tree / "megatron" / "core")
    for other in (wheel, sdist, checkout):
        assert other.symbols == folder.symbols
        assert other.slots == folder.slots
        assert other.separators == folder.separators
        assert other.exclusions == folder.exclusions
        assert other.version == folder.version
        assert other.digest == folder.digest
    settings = read_settings(open_megatron(tree))
    for other in (wheel, sdist):
        found = read_settings(open_megatron(Path(other.origin)))
        assert found.config_fields == settings.config_fields
        assert found.model_arguments == settings.model_arguments


def test_the_digest_changes_with_one_byte_of_what_was_read(tree: Path) -> None:
    before = read(tree).digest
    edit(tree, STACK, lambda text: text + "#")
    assert read(tree).digest != before


def empty_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/__init__.py", "")


def empty_sdist(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("other-1.0/setup.py"), io.BytesIO(b""))


def cut_short(path: Path) -> None:
    """An archive as an interrupted download leaves it."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name in ("a-1/x", "a-1/y"):
            member = tarfile.TarInfo(name)
            member.size = 5000
            archive.addfile(member, io.BytesIO(b"x" * 5000))
    path.write_bytes(whole.getvalue()[:6000])


@pytest.mark.parametrize(
    "make",
    [empty_wheel, empty_sdist, cut_short, lambda path: path.write_text("?"), Path.mkdir, None],
    ids=["wheel", "sdist", "cut short", "text", "folder", "nothing"],
)
def test_what_holds_no_megatron_is_said_to_hold_none(
    make: Callable[[Path], object] | None, tmp_path: Path
) -> None:
    path = tmp_path / "given"
    if make is not None:
        make(path)
    with pytest.raises(MegatronMissing) as caught:
        open_megatron(path)
    assert str(path) in caught.value.asked


def cut_short_gz(path: Path) -> None:
    empty_sdist(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def test_an_sdist_that_is_cut_short_holds_no_megatron(tmp_path: Path) -> None:
    cut_short_gz(tmp_path / "given.tar.gz")
    with pytest.raises(MegatronMissing):
        open_megatron(tmp_path / "given.tar.gz")


def test_a_wheel_with_a_damaged_file_is_of_an_unknown_shape(tree: Path, tmp_path: Path) -> None:
    wheel = archive_wheel(tree, tmp_path / "damaged.whl")
    data = wheel.read_bytes()
    line = b"class HybridStackSubmodules"
    assert line in data
    wheel.write_bytes(data.replace(line, line.upper()))
    found = where(wheel)
    assert found.surface.symbols == ()
    assert [type(fault) for fault in found.faults] == [SurfaceUnknown]
    assert "cannot be read" in found.faults[0].found


# --- which Python it is for -------------------------------------------------------------------


def test_the_python_is_what_the_metadata_says(installed: Path, tree: Path) -> None:
    from importlib.metadata import metadata

    answer = metadata("megatron-core")["Requires-Python"]
    assert open_megatron(installed).requires_python() == answer == ">=3.12"
    assert open_megatron(tree).requires_python() is None
    (tree / "pyproject.toml").write_text('[project]\nrequires-python = ">=3.13"\n')
    assert open_megatron(tree).requires_python() == ">=3.13"


@pytest.mark.parametrize(
    "text", ["[project", "project = 3\n", "[project]\nrequires-python = 3\n", "\n", "\udcff"]
)
def test_metadata_that_says_no_python_is_passed_over(text: str, tree: Path) -> None:
    (tree / "pyproject.toml").write_bytes(text.encode(errors="surrogateescape"))
    assert open_megatron(tree).requires_python() is None


def test_of_two_installations_in_one_folder_neither_is_believed(tree: Path) -> None:
    for version, python in (("0.18.0", ">=3.10"), ("0.19.0", ">=3.12")):
        record = tree / f"megatron_core-{version}.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Requires-Python: {python}\n")
    assert open_megatron(tree).requires_python() is None


# --- sources of another shape -----------------------------------------------------------------

MAMBA_BRANCH = "if layer_type == LayerSymbols.MAMBA:"
#: What is changed, where, and how; each makes the surface something that must not be guessed at.
UNKNOWN = {
    "a branch builds two things": (
        STACK,
        lambda text: text.replace(
            "layer = build_module(\n                        submodules.mlp_layer,",
            "extra = build_module(submodules.moe_layer)\n                    "
            "layer = build_module(\n                        submodules.mlp_layer,",
        ),
    ),
    "the first branch builds two things": (
        STACK,
        lambda text: text.replace(
            "                elif layer_type == LayerSymbols.ATTENTION:",
            "                    layer = wrap(layer)\n"
            "                elif layer_type == LayerSymbols.ATTENTION:",
            1,
        ),
    ),
    "the build function is renamed": (STACK, replaced("build_module(", "construct(")),
    "one branch builds otherwise": (
        STACK,
        lambda text: text.replace(
            "layer = build_module(\n                        submodules.gdn_layer,",
            "layer = make_gdn(\n                        submodules.gdn_layer,",
        ),
    ),
    "the chain compares something else": (STACK, replaced("layer_type ==", "kind ==")),
    "the chain ends with a default": (
        STACK,
        replaced('raise ValueError("unexpected layer_type")', "layer = None"),
    ),
    "keywords are passed as a mapping": (
        STACK,
        lambda text: text.replace("config=self.config,", "**common,", 1),
    ),
    "a slot is built that is no field": (
        STACK,
        replaced("submodules.gdn_layer,", "submodules.gated_layer,"),
    ),
    "there is no dataclass of submodules": (STACK, replaced("StackSubmodules", "StackParts")),
    "a symbol is computed": (ALLOCATION, replaced('MLA = "+"', "MLA = chr(43)")),
    "a symbol is annotated": (ALLOCATION, replaced('MLA = "+"', 'MLA: str = "+"')),
    "two symbols are one letter": (ALLOCATION, replaced('MLA = "+"', 'MLA = "M"')),
    "a symbol has two letters": (ALLOCATION, replaced('MLA = "+"', 'MLA = "++"')),
    "the layers are computed": (
        ALLOCATION,
        lambda text: text.replace("VALID_LAYERS = {", "VALID_LAYERS = frozenset() | {", 1),
    ),
    "a constant is missing from the chain": (
        STACK,
        replaced("layer_type == LayerSymbols.GDN:", "layer_type == LayerSymbols.MOE:"),
    ),
    "a layer is missing from Symbols": (
        ALLOCATION,
        lambda text: text.replace("VALID_LAYERS = {MAMBA, GDN,", "VALID_LAYERS = {MAMBA,", 1),
    ),
    "a condition is not understood": (
        ALLOCATION,
        replaced(
            "if Symbols.ATTENTION in pattern and (",
            "if Symbols.ATTENTION in pattern and len(pattern) > 3 and (",
        ),
    ),
    "a condition hides in a loop": (
        ALLOCATION,
        replaced(
            "    # Disallow Attention + MLA/DSA hybridity.\n    if Symbols.ATTENTION in pattern",
            "    for _ in pattern:\n     if Symbols.GDN in pattern:\n      raise ValueError()\n"
            "    if Symbols.ATTENTION in pattern",
        ),
    ),
    "the class of symbols is renamed": (ALLOCATION, replaced("class Symbols:", "class Letters:")),
    "an import takes a name in use": (
        STACK,
        replaced("import IdentityOp\n", "import IdentityOp as nullcontext\n"),
    ),
    "an import is from elsewhere": (
        STACK,
        replaced(
            "from contextlib import nullcontext", "from megatron.core.other import nullcontext"
        ),
    ),
    "a layer is appended twice": (
        STACK,
        replaced(
            "self.layers.append(layer)\n", "self.layers.append(layer);self.layers.append(layer)\n"
        ),
    ),
    "a slice of the list": (
        STACK,
        replaced("enumerate(self.layer_type_list)", "enumerate(self.layer_type_list[1:])"),
    ),
    "the class is decorated": (STACK, replaced("class HybridStack(", "@twice\nclass HybridStack(")),
    "an argument is another": (
        STACK,
        lambda text: text.replace("is_mtp_layer=is_mtp_layer", "is_mtp_layer=True", 1),
    ),
    "layers are numbered backwards": (
        STACK,
        replaced("= i + 1 + pp_layer_offset", "= len(self.layer_type_list) - i + pp_layer_offset"),
    ),
    "layers are numbered in their stage": (
        STACK,
        lambda text: text.replace("layer_number=layer_number", "layer_number=i + 1", 1),
    ),
    "a number may have its offset added": (
        STACK,
        lambda text: text.replace("add_layer_offset=False,", "", 1),
    ),
    "an item is assigned after the loop": (
        STACK,
        lambda text: text.replace(
            "        if self.config.cuda_graph_impl ==",
            "        self.layers[0] = self.layers[1]\n        if self.config.cuda_graph_impl ==",
            1,
        ),
    ),
    "an item is assigned by a method": (
        STACK,
        lambda text: text.replace(
            "        self.input_tensor = input_tensor",
            "        self.layers[0] = self.layers[1]",
            1,
        ),
    ),
    "the submodules are others": (
        STACK,
        replaced("        self.tp_group = pg_collection.tp", "        submodules = SUBMODULES"),
    ),
    "a default is another": (
        STACK,
        replaced("pp_layer_offset: int = 0", "pp_layer_offset: int = 1"),
    ),
    "something happens at import": (STACK, lambda text: text + "\nchange(HybridStack)\n"),
    "an attribute decides otherwise": (
        STACK,
        replaced(
            "    def set_input_tensor(",
            "    def __setattr__(self, name, value):\n        pass\n\n    def set_input_tensor(",
        ),
    ),
    "a stage begins elsewhere": (
        ALLOCATION,
        replaced("segment_index = vp_rel * pp_size + pp_rank", "segment_index = pp_rank"),
    ),
    "stages are split otherwise": (
        ALLOCATION,
        replaced("layer_type_list[offset : offset + count]", "layer_type_list[:count]"),
    ),
    "MTP depths are counted otherwise": (
        ALLOCATION,
        replaced("mtp_num_depths=len(mtp_parts)", "mtp_num_depths=1"),
    ),
    "a function is replaced at import": (
        ALLOCATION,
        lambda text: text + "\nselect_pipeline_segment = changed(select_pipeline_segment)\n",
    ),
    "it is not Python": (STACK, lambda text: text + "\ndef (:\n"),
    "it has a null byte": (STACK, lambda text: text + "\0"),
    "the version is not stated": ("core/package_info.py", replaced("MAJOR = 0", "MAJOR = int(0)")),
    "the version is no version": ("core/package_info.py", replaced('= ""', '= "?"')),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_a_source_of_another_shape_is_an_error_and_nothing_is_native(what: str, tree: Path) -> None:
    name, change = UNKNOWN[what]
    edit(tree, name, change)
    with pytest.raises(SurfaceUnknown):
        read(tree)
    found = where(tree)
    assert found.surface.symbols == ()
    (fault,) = found.faults
    assert isinstance(fault, SurfaceUnknown)
    assert fault.found
    refused = reasons(recipe("M"), found)
    # A consequence of it is no cause of its own: it names the layers that lack a provider.
    assert [(type(reason), reason.positions) for reason in refused] == [(SurfaceUnknown, (1,))]


@pytest.mark.parametrize("name", ["core/package_info.py", ALLOCATION, STACK])
def test_a_source_without_a_file_that_is_read_is_an_error(name: str, tree: Path) -> None:
    (tree / "megatron" / name).unlink()
    with pytest.raises((SurfaceUnknown, MegatronMissing)):
        read(tree)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (ALLOCATION, replaced("is not a valid layer symbol", "is none")),
        (ALLOCATION, replaced("HybridModel: pp_rank", "stage")),
        (ALLOCATION, replaced("segment: str) -> List[str]:", "segment) -> list:")),
        (STACK, replaced("pg_collection must be provided", "no pg_collection")),
        (STACK, replaced("# Build layers from the pre-selected segment", "# Layers")),
        (
            STACK,
            replaced(
                "if self.post_process and self.post_layer_norm:",
                "if self.post_process and self.post_layer_norm:  # last",
            ),
        ),
    ],
)
def test_what_only_a_person_reads_may_be_another(
    name: str, change: Callable[[str], str], tree: Path
) -> None:
    edit(tree, name, change)
    assert read(tree).symbols == SYMBOLS


# --- symbols that upstream adds ---------------------------------------------------------------


def add_kda(tree: Path) -> None:
    """A new layer as upstream adds one: a letter, a field, a branch."""
    edit(tree, ALLOCATION, replaced("    MOE = 'E'\n", "    MOE = 'E'\n    KDA = 'K'\n"))
    edit(tree, ALLOCATION, replaced("MLP, MOE}", "MLP, MOE, KDA}"))
    edit(
        tree,
        STACK,
        lambda text: text.replace(
            "                elif layer_type == LayerSymbols.GDN:",
            "                elif layer_type == LayerSymbols.KDA:\n"
            "                    layer = build_module(submodules.kda_layer, config=self.config, "
            "layer_number=layer_number, add_layer_offset=False)\n"
            "                elif layer_type == LayerSymbols.GDN:",
            1,
        ).replace("    gdn_layer:", "    kda_layer: object = None\n    gdn_layer:", 1),
    )


def test_a_symbol_without_a_family_is_unmapped_and_spells_nothing(tree: Path) -> None:
    add_kda(tree)
    found = where(tree)
    (note,) = (note for note in found.notes if isinstance(note, SymbolUnmapped))
    assert note.subject == "KDA"
    symbol = found.surface.of_constant("KDA")
    assert symbol is not None
    assert (symbol.symbol, symbol.slot, symbol.family) == ("K", "kda_layer", None)
    assert {type(reason).__name__ for reason in reasons(recipe("K"), found)} == {"UnknownToken"}
    assert plan(recipe("M"), found).layers[0].provider.symbol == "M"


def test_a_seam_that_accepts_the_new_symbol_makes_its_family_native(tree: Path) -> None:
    add_kda(tree)
    seam = make_seam(fallback="native", accepts={"symbol-name": "KDA"}, requires=">=0.17,<0.19")
    made = plan(recipe("MK", tokens={"K": "kda"}), environment(seam, native=read(tree)))
    assert made.layers[1].provider.symbol == "K"
    assert made.seams == ()
    assert "supersedes" in made.layers[1].why


# --- what hides a Megatron, or comes before a release ------------------------------------------


def test_a_package_that_shadows_megatron_is_named(tmp_path: Path) -> None:
    other = tmp_path / "site" / "megatron"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    done = run_python(
        *("-m", "megatron_seams", "surface"), cwd=tmp_path, code=3, PYTHONPATH=str(other.parent)
    )
    assert "SEAM-S01" in done.stderr
    told = " ".join(done.stderr.split())
    assert f"the package `megatron` at {other} comes first" in told
    assert f"take {other.parent} off the path" in told
    assert "pip install" not in told


def test_a_pre_release_before_a_range_is_called_one() -> None:
    seam = make_seam(requires=">=0.17,<0.20")
    for version, answer in (("0.17.0rc0", True), ("0.16.1", False), ("0.20.0rc1", False)):
        native = attrs.evolve(environment().surface, version=Version(version))
        fault = environment(seam, native=native).out_of_range(seam)
        assert ("is a pre-release" in (fault.found if fault else "")) == answer
