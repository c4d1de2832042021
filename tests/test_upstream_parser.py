"""Upstream's own parser and dataclasses, against what is read from them and written for them.

On the Megatron that is imported; tests/test_releases.py runs this on the other ones. One process
with upstream's parser (tests/real_parser.py) answers for all tests.
"""

import functools
import json
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import pytest
from click.testing import CliRunner

import forked
from megatron_seams.cli import cli
from megatron_seams.planning.environment import read_environment
from megatron_seams.upstream.locate import importable_megatron
from megatron_seams.upstream.settings import read_settings

pytestmark = [pytest.mark.megatron, pytest.mark.release]

REAL = Path(__file__).with_name("real_parser.py")

#: The flags that the reader reports as not understood, on each release: upstream's generator of
#: flags has no rule for the type of this one's field.
UNREAD = ("--exit-signal",)

LATENT = """\
schema = 1
[model]
name = "latent"
pattern = "*E*-"
[megatron]
multi_latent_attention = true
hidden_size = 64
num_moe_experts = 8
"""


@attrs.frozen
class Real:
    """Upstream's answer.

    Attributes:
        described: Its flags, the fields of its configuration and the arguments of its model.
        lines: What ``registry args`` prints for each recipe that resolves.
        parsed: What upstream's parser makes of each of them.
    """

    described: dict[str, Any]
    lines: list[list[str]]
    parsed: list[dict[str, Any]]


@pytest.fixture(scope="module")
def real(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Real:
    folder = tmp_path_factory.mktemp("recipes")
    latent = folder / "latent.toml"
    latent.write_text(LATENT)
    lines = []
    once = functools.cache(read_environment)  # one Megatron for all of them
    for file in [*sorted((repository / "recipes").glob("*.toml")), latent]:
        with mock.patch("megatron_seams.cli.args.read_environment", once):
            done = CliRunner().invoke(cli, ["args", str(file), "--lines"])
        assert done.exit_code in (0, 2), done.output
        if done.exit_code == 0:
            lines.append(done.stdout.splitlines())
    assert len(lines) >= 5
    (folder / "lines.json").write_text(json.dumps(lines))
    run = forked.run_python(REAL, folder / "lines.json", code=0)
    answer = json.loads(run.stdout.strip().splitlines()[-1])
    return Real(described=answer["described"], lines=lines, parsed=answer["parsed"])


def test_flags_and_fields_are_those_of_upstreams_own_parser(real: Real) -> None:
    source, _ = importable_megatron()
    assert source is not None
    found = read_settings(source)
    flags = {name: flag for flag in real.described["flags"] for name in flag["names"]}
    for name in ("-h", "--help", *UNREAD):
        del flags[name]
    assert found.flags.keys() == flags.keys()
    for name, flag in found.flags.items():
        assert (flag.dest, flag.nargs) == (flags[name]["dest"], flags[name]["nargs"]), name
        assert dict(flag.sets) == flags[name]["sets"], name
        if flag.choices is not None:
            assert len(flag.choices) == len(flags[name]["choices"]), name
    assert found.config_fields.keys() == real.described["fields"].keys()
    assert set(found.model_arguments) == set(real.described["arguments"])
    assert any(UNREAD[0].strip("-").replace("-", "_") in text for text in found.unread)


def test_upstreams_own_parser_takes_every_recipe_that_resolves(real: Real) -> None:
    for given, values in zip(real.lines, real.parsed, strict=True):
        assert values["hybrid_layer_pattern"] == given[1]
        if "--num-experts" in given:
            assert values["num_experts"] == int(given[given.index("--num-experts") + 1])
        assert values["multi_latent_attention"] == ("--multi-latent-attention" in given)
