"""Every published megatron-core: what it builds, from whatever it is read."""

import json
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner

from megatron_releases import READ, wheel
from megatron_seams.cli import cli
from megatron_seams.upstream.locate import open_megatron
from megatron_seams.upstream.surface import read_surface
from megatron_texts import described, texts_of, write_folder, write_sdist
from seam_support import registry, run_python

pytestmark = pytest.mark.published

SLOTS = {
    "M": ("MAMBA", "mamba", "mamba_layer"),
    "G": ("GDN", "gdn", "gdn_layer"),
    "*": ("ATTENTION", "attention", "attention_layer"),
    "D": ("DS_ATTENTION", "dsa", "dsa_layer"),
    "+": ("MLA", "mla", "mla_layer"),
    "-": ("MLP", "mlp", "mlp_layer"),
    "E": ("MOE", "moe", "moe_layer"),
}
OLDEST = {
    "M": "config residual_in_fp32 layer_number model_comm_pgs",
    "*": "config layer_number model_comm_pgs",
    "-": "config layer_number model_comm_pgs",
}
PLAIN = "config layer_number pg_collection"
FED = f"{PLAIN} add_layer_offset"
ATTENDS = f"{PLAIN} is_mtp_layer add_layer_offset pp_layer_offset"
NAMED = {
    "M": "config layer_number pp_layer_offset pg_collection name",
    "G": f"{FED} name",
    "*": f"{ATTENDS} name",
    "D": f"{ATTENDS} name",
    "-": f"{FED} name",
    "E": f"{FED} name",
}


@attrs.frozen(kw_only=True)
class Release:
    """The known surface of a release: keywords by symbol, in upstream's order."""

    python: str
    keywords: dict[str, str]
    separators: tuple[str, ...] = ("|", "/")
    rules: int = 0


RELEASES = {
    "0.14": Release(python=">=3.10", separators=(), keywords=OLDEST),
    "0.15": Release(
        python=">=3.10",
        separators=(),
        keywords={s: k.replace("model_comm_pgs", "pg_collection") for s, k in OLDEST.items()},
    ),
    "0.16": Release(
        python=">=3.10",
        separators=(),
        keywords={
            "M": "config residual_in_fp32 layer_number pp_layer_offset pg_collection",
            "*": PLAIN,
            "-": PLAIN,
            "E": PLAIN,
        },
    ),
    "0.17": Release(
        python=">=3.12",
        keywords={
            "M": "config layer_number pp_layer_offset pg_collection",
            "G": FED,
            "*": ATTENDS,
            "-": FED,
            "E": FED,
        },
    ),
    "0.18": Release(python=">=3.12", keywords=NAMED, rules=1),
    "0.19": Release(
        python=">=3.12",
        keywords={s: {**NAMED, "+": ATTENDS}[s] for s in "MG*D+-E"},
        rules=1,
    ),
}


def test_every_release_that_is_fetched_is_described() -> None:
    assert tuple(RELEASES) == READ


@pytest.mark.parametrize("release", RELEASES)
def test_the_surface_of_a_published_wheel_is_the_contracts(release: str, tmp_path: Path) -> None:
    expected = RELEASES[release]
    done = registry("surface", wheel(release), "--json", cwd=tmp_path, code=0)
    found = json.loads(done.stdout)["surface"]
    assert found["version"].startswith(f"{release}.")
    assert found["requires_python"] == expected.python
    assert found["symbols"] == [
        {
            "symbol": symbol,
            "constant": SLOTS[symbol][0],
            "family": SLOTS[symbol][1],
            "slot": SLOTS[symbol][2],
            "keywords": keywords.split(),
        }
        for symbol, keywords in expected.keywords.items()
    ]
    assert found["separators"] == list(expected.separators)
    assert len(found["exclusions"]) == expected.rules


@pytest.mark.parametrize("release", RELEASES)
def test_the_text_of_a_surface_fits_a_hundred_columns(release: str) -> None:
    done = CliRunner().invoke(cli, ["surface", str(wheel(release))])
    title, origin, *lines = done.stdout.splitlines()
    assert origin == str(wheel(release))
    assert max(len(line.rstrip()) for line in [title, *lines]) <= 100
    keywords = {word for words in RELEASES[release].keywords.values() for word in words.split()}
    assert keywords <= set(done.stdout.split())
    (shared,) = (line for line in lines if line.startswith("every slot is given: "))
    assert shared.split()[4:6] == ["config", "layer_number"]


@pytest.mark.parametrize("release", RELEASES)
def test_wheel_folder_sdist_and_checkout_of_one_release_have_one_surface(
    release: str, tmp_path: Path
) -> None:
    texts = texts_of(wheel(release))
    python = RELEASES[release].python
    checkout = {name: text for name, text in texts.items() if not name.endswith("METADATA")}
    checkout["pyproject.toml"] = f'[project]\nrequires-python = "{python}"\n'
    expected = described(wheel(release))
    places = [
        write_folder(tmp_path / "unpacked", texts),
        tmp_path / "unpacked" / "megatron",
        tmp_path / "unpacked" / "megatron" / "core",
        write_folder(tmp_path / "checkout", checkout),
        write_sdist(tmp_path / "made.tar.gz", texts),
        write_sdist(tmp_path / "of-checkout.tar.gz", checkout),
    ]
    for place in places:
        assert described(place) == expected, place


def test_the_digests_of_the_releases_all_differ() -> None:
    digests = {read_surface(open_megatron(wheel(release))).digest for release in READ}
    assert len(digests) == len(READ)


def test_reading_a_wheel_imports_nothing_of_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from megatron_seams.upstream.locate import open_megatron;"
        "from megatron_seams.upstream.surface import read_surface;"
        f"found = read_surface(open_megatron(Path({str(wheel('0.18'))!r})));"
        "print(found.version, [n for n in sys.modules if n.partition('.')[0] in"
        " ('megatron', 'torch')], [p for p in sys.path if p.endswith('.whl')])"
    )
    assert run_python("-c", program, cwd=tmp_path, code=0).stdout == "0.18.2 [] []\n"
