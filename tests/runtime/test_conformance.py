"""The conformance kit: a good seam passes it; one that breaks a rule hears which, and what to do.

Each bad seam is the good one with one edit, and the kit runs as for its users: ``pytest --seam``.
"""

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import megatron_releases
from megatron_seams.runtime.conformance import rules
from seam_support import run_python, write_record

pytestmark = pytest.mark.megatron

SEAMS = Path(__file__).parent / "seams"


class Reports:
    """The outcome of each test of one run."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.texts: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1
        if report.failed or report.skipped:
            self.texts[report.nodeid.rpartition("::")[2]] = report.longreprtext


def install(site: Path, seam: str, edits: Mapping[str, tuple[str, str]]) -> None:
    """Lay a test seam out as an installer does, with one text in the place of another."""
    shutil.copytree(SEAMS / seam, site / seam, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (old, new) in edits.items():
        file = site / seam / name
        text = file.read_text()
        assert text.count(old) == 1, (name, old)
        file.write_text(text.replace(old, new))
    info = site / f"acme_{seam}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-{seam}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[megatron_seams]\n{seam} = {seam}\n")
    files = {str(f.relative_to(site)): f.read_bytes() for f in site.rglob("*") if f.is_file()}
    write_record(site, info.name, files)


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Reports]]:
    """Run the kit on a test seam with these edits, in this process: Megatron is imported once."""
    used: list[str] = []

    def run(
        *arguments: str,
        seam: str = "decay",
        edits: Mapping[str, tuple[str, str]] | None = None,
    ) -> Reports:
        used.append(seam)
        install(tmp_path / "site", seam, edits or {})
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        found = Reports()
        options = ["-c", str(tmp_path / "pytest.ini"), "-s", "-q", "-p", "no:cacheprovider"]
        pytest.main(["--seam", seam, *options, *arguments], plugins=[found])
        return found

    yield run
    for name in [name for name in sys.modules if name.partition(".")[0] in used]:
        del sys.modules[name]  # the next test has another


def test_a_seam_that_keeps_every_rule_passes(kit) -> None:
    found = kit()
    assert list(found.texts) == ["test_two_ranks_compute_what_one_does[context-parallel]"]
    # Context parallelism, which it does not claim, is all that is skipped.
    assert found.outcomes == {"passed": 26, "skipped": 1}


#: A class of the good one's name around it.
WRAPPER = """class DecayMixer(MegatronModule):
    def __init__(self, config, **keywords):
        super().__init__(config)
        self.chosen = Chosen(config, **keywords)

    def forward(self, *args, **kwargs):
        return self.chosen(*args, **kwargs)


class Chosen("""

BAD = {
    "unread manifest": (rules.FOUND, {"seam.toml": ('owner = "@acme/tests"\n', "")}, "seam.owner"),
    "torch at import": (
        rules.LIGHT_IMPORT,
        {"__init__.py": ('"""A', 'import torch\n\n"""A')},
        "torch",
    ),
    "another hook": (
        rules.HOOKS,
        {"plugin.py": ("def decay_layer(", "def kda_layer(")},
        "'kda_layer'",
    ),
    "no linear": (
        rules.BUILDS,
        {
            "mixer.py": (
                "        self.layer_number =",
                "        raise OSError('no linear')\n        self.layer_number =",
            )
        },
        "OSError: no linear",
    ),
    "no bias beside the output": (
        rules.FORWARD,
        {"mixer.py": ("torch.stack(states))", "torch.stack(states))[0]")},
        "not (output, bias)",
    ),
    "transposed": (
        rules.FORWARD,
        {
            "mixer.py": (
                "return self.out_proj(torch.stack(states))",
                "return self.out_proj(torch.stack(states))[0][:8], None",
            )
        },
        "returned [8, 2, 128]",
    ),
    "detached": (
        rules.GRADIENTS,
        {"mixer.py": ("self.rate.sigmoid()", "self.rate.detach().sigmoid()")},
        "mixer.rate: no gradient",
    ),
    "infinite": (
        rules.GRADIENTS,
        {"mixer.py": ("self.rate.sigmoid()", "(self.rate * 0).sqrt()")},
        "mixer.rate: not finite",
    ),
    "random": (
        rules.DETERMINISTIC,
        {"mixer.py": ("torch.zeros_like(x[0])", "torch.rand_like(x[0])")},
        "two forward passes",
    ),
    "sees the next token": (
        rules.CAUSAL,
        {
            "mixer.py": (
                "states.append(state)",
                "states.append(state + x[min(at + 1, len(x) - 1)])",
            )
        },
        "with other tokens from 1 on in a row, the logits at token 0 differ",
    ),
    "normalises over the sequence": (
        rules.CAUSAL,
        {"mixer.py": ("torch.stack(states))", "torch.stack(states) - 1e-6 * x.mean(0))")},
        "the logits at token 0 differ",
    ),
    "mixes rows": (
        rules.ROWS_APART,
        {"mixer.py": ("torch.stack(states))", "torch.stack(states).roll(1, dims=1))")},
        "with other tokens in row 0, the logits of row 1 differ at token 0",
    ),
    "counts its calls": (
        rules.RECOMPUTE,
        {
            "mixer.py": (
                "        states = []",
                "        self.calls = getattr(self, 'calls', 0) + 1\n        x = x / self.calls\n"
                "        states = []",
            )
        },
        "the gradients differ",
    ),
    "adds the offset again": (
        rules.NUMBERS,
        {"mixer.py": ("self.layer_number = layer_number", "self.layer_number = layer_number + 2")},
        "was given 3 and calls itself 5",
    ),
    "asks for a keyword that only later releases pass": (
        rules.KEYWORDS,
        {"seam.toml": ('"pg_collection"]', '"pg_collection", "name"]')},
        "megatron-core 0.17",
    ),
    "does not take what later releases pass": (
        rules.KEYWORDS,
        {"seam.toml": ('takes = ["pp_layer_offset", "name"]', 'takes = ["pp_layer_offset"]')},
        "['name']",
    ),
    "in a wrapper": (
        rules.NO_WRAPPER,
        {"mixer.py": ("class DecayMixer(", WRAPPER)},
        "'chosen' (Chosen)",
    ),
    "forgets a parameter": (
        rules.ROUND_TRIP,
        {
            "mixer.py": (
                'return {"rate": 0}\n',
                'return {"rate": 0}\n\n'
                "    def sharded_state_dict(self, prefix='', sharded_offsets=(), metadata=None):\n"
                "        sharded = super().sharded_state_dict(prefix, sharded_offsets, metadata)\n"
                "        del sharded[f'{prefix}rate']\n"
                "        return sharded\n",
            )
        },
        "mixer.rate",
    ),
    "leaks": (
        rules.PACKED,
        {"mixer.py": ("token if at in starts else ", "")},
        "the document at tokens 5 to 9",
    ),
    "forgets what it kept": (
        rules.INFERENCE,
        {"mixer.py": ("sequence_len_offset > 0", "sequence_len_offset > 99")},
        "the logits after token 9",
    ),
    "makes a linear when it first runs": (
        rules.WIDTHS,
        {
            "mixer.py": (
                "        x, _ = self.in_proj(hidden_states)",
                "        if not hasattr(self, 'late'):\n"
                "            self.late = type(self.in_proj)(\n"
                "                hidden_states.shape[-1], 24, config=self.config, bias=False,\n"
                "                init_method=self.config.init_method, gather_output=True,\n"
                "                tp_group=self.tp_group)\n"
                "        self.late(hidden_states)\n"
                "        x, _ = self.in_proj(hidden_states)",
            )
        },
        "on one rank decoder.layers.0.mixer.late with 24 x 128",
    ),
    "needs more than it claims": (
        rules.REFUSED,
        {"seam.toml": ("tensor-parallel = true", "tensor-parallel = false")},
        "sequence-parallel = true, and yet: tensor-parallel = false",
    ),
}

#: The test of the kit that holds each rule.
TESTS = {
    rules.FOUND: "forward",
    rules.LIGHT_IMPORT: "light",
    rules.HOOKS: "agrees",
    rules.BUILDS: "forward",
    rules.FORWARD: "forward",
    rules.GRADIENTS: "gradients",
    rules.DETERMINISTIC: "twice",
    rules.CAUSAL: "later_one",
    rules.ROWS_APART: "no_row",
    rules.RECOMPUTE: "checkpointing",
    rules.NUMBERS: "number",
    rules.KEYWORDS: "keywords",
    rules.NO_WRAPPER: "wrapper",
    rules.ROUND_TRIP: "comes_back",
    rules.PACKED: "leak",
    rules.INFERENCE: "continues",
    rules.REFUSED: "what_it_does_not_support",
    rules.WIDTHS: "fp8",
    rules.SPREAD: "two_ranks",
}


@pytest.mark.parametrize("what", BAD)
def test_a_seam_that_breaks_a_rule_is_told_which_and_what_to_do(what: str, kit) -> None:
    rule, edits, expected = BAD[what]
    arguments = ["-k", TESTS[rule]]
    if rule is rules.KEYWORDS:
        for release in ("0.17", "0.19"):
            arguments += ["--seam-megatron", str(megatron_releases.wheel(release))]
    texts = kit(*arguments, edits=edits).texts
    assert texts
    for text in texts.values():
        assert f"rule {rule.name!r}: {rule.says}" in text
        assert f"next: {rule.next}" in text
    assert any(expected in text for text in texts.values()), texts


def test_a_leak_inside_packed_documents_alone_is_found(kit) -> None:
    leaks = "state if not starts or at + 1 in starts else state + x[at + 1]"
    edits = {"mixer.py": ("states.append(state)", f"states.append({leaks})")}
    found = kit("-k", f"{TESTS[rules.CAUSAL]} or {TESTS[rules.PACKED]}", edits=edits)
    assert found.outcomes == {"passed": 1, "failed": 1}  # a row of one document does not leak
    (text,) = found.texts.values()
    assert f"rule {rules.CAUSAL.name!r}" in text
    assert "with other tokens from 1 on in a packed row, the logits at token 0 differ" in text


def test_widths_that_fp8_does_not_take_on_two_ranks_alone_are_said(kit, tmp_path: Path) -> None:
    (tmp_path / "narrow.toml").write_text("[megatron]\nhidden_size = 48\n")
    others = "pipeline-parallel = {0}\nexpert-parallel = {0}"
    edits = {"seam.toml": (others.format("true"), others.format("false"))}
    options = ("--seam-options", str(tmp_path / "narrow.toml"))
    found = kit("-k", TESTS[rules.WIDTHS], *options, edits=edits)
    assert found.outcomes == {"skipped": 1}
    (why,) = found.texts.values()
    assert "with fp8 a model of these sizes is refused: on two ranks" in why
    assert "decoder.layers.0.mixer.in_proj with 24 x 48" in why


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("", "", None),
        ("(input_ids[:, :-1], (1, 0))", "(input_ids[:, 1:], (0, 1))", rules.CAUSAL),
        ("self.table(previous)", "self.table(previous.flip(0))", rules.ROWS_APART),
    ],
    ids=["good", "sees the next token", "mixes rows"],
)
def test_what_a_feature_sees_is_tested_too(old: str, new: str, rule, kit) -> None:
    both = f"{TESTS[rules.CAUSAL]} or {TESTS[rules.ROWS_APART]}"
    edits = {"plugin.py": (old, new)} if rule else None
    found = kit("-k", both, seam="bonus", edits=edits)
    assert found.outcomes == ({"passed": 1, "failed": 1} if rule else {"passed": 2})
    assert all(f"rule {rule.name!r}: {rule.says}" in text for text in found.texts.values())


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ('{ type = "int", default = 0, summary = "." }', "[options] says int, and the class float"),
        (
            '{ type = "float", default = 1.0, summary = "." }',
            "[options] has the default 1.0, and the class 0.0",
        ),
        ('{ type = "float", summary = "." }', "[options] has no default, and the class 0.0"),
        ('{ type = "float", required = true, summary = "." }', "the class has a default"),
    ],
)
def test_options_that_manifest_and_class_describe_differently_are_told(
    new: str, expected: str, kit
) -> None:
    old = '{ type = "float", default = 0.0, summary = "The first rate." }'
    (text,) = kit("-k", TESTS[rules.HOOKS], edits={"seam.toml": (old, new)}).texts.values()
    assert f"rule {rules.HOOKS.name!r}" in text
    assert f"start: {expected}" in text


def test_ranks_that_disagree_are_told_by_capability_and_hide_no_other(kit) -> None:
    # A mean over channels of which each rank has only its own.
    mean = "y = torch.stack(states)\n        return self.out_proj(y - y.mean(-1, keepdim=True))"
    edits = {"mixer.py": ("return self.out_proj(torch.stack(states))", mean)}
    found = kit("-k", TESTS[rules.SPREAD], edits=edits)
    assert found.outcomes == {"passed": 2, "failed": 2, "skipped": 1}
    for capability in ("tensor-parallel", "sequence-parallel"):
        text = found.texts[f"test_two_ranks_compute_what_one_does[{capability}]"]
        assert f"rule 'parallelism': {rules.SPREAD.says}" in text
        assert f"{capability}: the losses differ from one rank's by up to" in text


def test_every_rule_has_a_seam_that_breaks_it() -> None:
    known = {rule for rule in vars(rules).values() if isinstance(rule, rules.Rule)}
    assert {rule for rule, _, _ in BAD.values()} | {rules.SPREAD} == known == set(TESTS)


def test_without_the_option_the_plugin_imports_nothing(tmp_path: Path) -> None:
    test = tmp_path / "test_light.py"
    test.write_text(
        "import sys\n\n\ndef test_nothing_was_imported():\n"
        "    assert 'megatron_seams.pytest_plugin' in sys.modules\n"
        "    heavy = {'torch', 'megatron', 'cattrs', 'click', 'megatron_seams.runtime'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    run_python("-m", "pytest", "-q", test, cwd=tmp_path, code=0)


def test_a_seam_that_is_not_installed_is_one_failure_that_lists_those_that_are(
    tmp_path: Path,
) -> None:
    done = run_python("-m", "pytest", "--seam", "nobody", "-q", "-x", cwd=tmp_path, code=1)
    assert "rule 'found'" in done.stdout
    assert "no seam 'nobody' is installed; installed: " in done.stdout
