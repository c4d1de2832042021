"""The manifest's claims about upgrades, against the published releases."""

import json

import pytest

import megatron_releases
from megatron_seams.planning.environment import read_environment
from megatron_seams.upstream.locate import open_megatron
from megatron_seams.upstream.surface import read_surface
from seam_support import registry

pytestmark = pytest.mark.published


@pytest.mark.parametrize("release", ["0.17", "0.18", "0.19"])
def test_the_manifest_declares_every_keyword_that_its_slots_are_passed(release: str) -> None:
    (seam,) = (one for one in read_environment().discovery.seams if one.name == "mla")
    carrier = seam.manifest.carrier
    assert carrier is not None
    surface = read_surface(open_megatron(megatron_releases.wheel(release)))
    for slot in carrier.slots:
        symbol = surface.of_slot(slot)
        assert symbol is not None
        assert set(symbol.keywords) <= {*carrier.needs, *carrier.takes}
        assert set(carrier.needs) <= set(symbol.keywords)


def test_it_graduates_from_0_18_to_0_19_and_is_needed_again_the_other_way() -> None:
    older, newer = (str(megatron_releases.wheel(release)) for release in ("0.18", "0.19"))
    for other, hand, state in ((newer, older, "graduates"), (older, newer, "needed again")):
        done = registry("preview", other, "--json", "--megatron", hand)
        assert done.returncode == 1, done.stderr
        found = {one["name"]: one for one in json.loads(done.stdout)["seams"]}
        assert found["mla"]["state"] == state
    assert "native '+' is gone" in found["mla"]["why"][0]
