"""The manifest's claims about upgrades, against the published releases and a renamed keyword."""

import json
import zipfile
from pathlib import Path

import pytest

import megatron_releases
from megatron_seams.planning.environment import read_environment
from megatron_seams.upstream.locate import open_megatron
from megatron_seams.upstream.surface import read_surface
from seam_support import registry

pytestmark = pytest.mark.published


@pytest.mark.parametrize("release", ["0.17", "0.18", "0.19"])
def test_the_manifest_declares_every_keyword_that_its_slot_is_passed(release: str) -> None:
    (seam,) = (one for one in read_environment().discovery.seams if one.name == "m2rnn")
    carrier = seam.manifest.carrier
    assert carrier is not None
    surface = read_surface(open_megatron(megatron_releases.wheel(release)))
    symbol = surface.of_slot("mamba_layer")
    assert symbol is not None
    assert set(symbol.keywords) <= {*carrier.needs, *carrier.takes}
    assert set(carrier.needs) <= set(symbol.keywords)


def test_it_stays_from_release_to_release_and_breaks_where_a_keyword_is_renamed(
    tmp_path: Path,
) -> None:
    wheels = [megatron_releases.wheel(release) for release in ("0.17", "0.18", "0.19")]
    renamed = tmp_path / "megatron_core-renamed.whl"
    with zipfile.ZipFile(wheels[-1]) as source, zipfile.ZipFile(renamed, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("models/hybrid/hybrid_block.py"):
                changed = data.replace(b"pp_layer_offset=pp_layer_offset", b"stage=pp_layer_offset")
                assert changed != data
                data = changed
            target.writestr(name, data)
    for hand, other, state in (
        (wheels[0], wheels[1], "stays"),
        (wheels[1], wheels[2], "stays"),
        (wheels[2], renamed, "breaks"),
    ):
        done = registry("preview", str(other), "--json", "--megatron", str(hand))
        (found,) = (one for one in json.loads(done.stdout)["seams"] if one["name"] == "m2rnn")
        assert found["state"] == state, found
    assert "'stage'" in found["why"][0]
    assert "'pp_layer_offset'" in found["why"][0]
