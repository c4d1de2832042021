"""All ranks run the same, or none goes on: one message with the odd ranks and what differs."""

import contextlib
import datetime
import functools
import io
import os
import shlex
import sys
import threading
import time
from unittest import mock

import pytest
from torch.distributed import PrefixStore, TCPStore

import agreement_drill
from megatron_seams.errors import CannotRunHere, LaunchInvalid, RanksDiffer, Refusal
from megatron_seams.records.software import software
from megatron_seams.runtime.agreement.exchange import agree
from megatron_seams.runtime.agreement.meeting import (
    Meeting,
    is_launched,
    meeting_here,
    timeout_of,
)
from megatron_seams.runtime.agreement.statement import Statement
from megatron_seams.runtime.cpu.ranks import on_ranks
from seam_support import registry

pytestmark = [pytest.mark.megatron]

PLAN = {"plan": {"seams": {"kda": {"version": "1.0", "code_digest": "aa"}}, "layers": [{}, {}]}}
OTHER = {"plan": {"seams": {"kda": {"version": "1.1", "code_digest": "bb"}}, "layers": [{}, {}]}}
SECONDS = 0.4


class Ranks:
    """Ranks as threads, each with a connection of its own to one store."""

    def __init__(self):
        self.server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.met = 0

    def agree(self, *statements, again=False):
        """The error of each rank's ``agree``, with its seconds; a statement of None is silence."""
        self.met += not again
        ends = [None] * len(statements)

        def rank(number, statement):
            store = TCPStore("127.0.0.1", self.server.port, wait_for_workers=False)
            meeting = Meeting(
                store=PrefixStore(str(self.met), store),
                rank=number,
                world_size=len(statements),
                timeout=datetime.timedelta(seconds=SECONDS),
            )
            started, raised = time.monotonic(), None
            try:
                agree(meeting, "plan", statement)
            except RanksDiffer as error:
                raised = error
            ends[number] = raised, time.monotonic() - started

        threads = [
            threading.Thread(target=rank, args=(number, statement))
            for number, statement in enumerate(statements)
            if statement is not None
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return ends


@pytest.fixture(scope="module")
def ranks():
    return Ranks()


ALIKE, ODD = Statement.of(PLAN), Statement.of(OTHER)
FAILED = Statement.of_error(Refusal([CannotRunHere(asked="D", found="no GPU", next="get one")]))


def test_ranks_that_say_the_same_go_on(ranks):
    assert [raised for raised, _ in ranks.agree(*[ALIKE] * 5)] == [None] * 5


def test_what_all_have_said_before_one_rank_may_say_alone(ranks):
    ranks.agree(*[ALIKE] * 3)
    ends = ranks.agree(None, ALIKE, None, again=True)
    assert ends[1][0] is None
    assert ends[1][1] < SECONDS


@pytest.mark.parametrize(
    ("statements", "parts"),
    [
        (
            [ALIKE, ODD, ALIKE, ALIKE],
            [
                "ranks 0, 2-3 (",
                "rank 1 (",
                'plan.seams.kda.version is "1.1", not "1.0"',
                'plan.seams.kda.code_digest is "bb", not "aa"',
            ],
        ),
        ([ALIKE, ALIKE, FAILED, ALIKE], ["rank 2 (", "no plan, because [SEAM-B05] D", "no GPU"]),
        ([ALIKE, ALIKE, ALIKE, None], ["ranks 0-2 (", "rank 3: silent for 0.4 s"]),
        ([None, None, ALIKE, ALIKE], ["ranks 0-1: silent"]),
        ([ODD, ALIKE, None, FAILED], ["rank 2: silent", "version", "rank 3 (", "no GPU"]),
    ],
    ids=["version", "error", "silent", "silent rank 0", "all at once"],
)
def test_odd_ranks_stop_all_with_one_message(ranks, statements, parts):
    ends = [end for end in ranks.agree(*statements) if end is not None]
    texts = {str(raised) for raised, _ in ends}
    assert len(texts) == 1, texts
    (text,) = texts
    assert [part for part in parts if part not in text] == []
    assert max(seconds for _, seconds in ends) < SECONDS + 3


def test_where_every_rank_has_an_error_each_raises_its_own(ranks):
    other = Statement.of_error(ValueError("out of luck"))
    assert [raised for raised, _ in ranks.agree(FAILED, other)] == [None, None]


def test_fields_of_lists_are_named_by_number():
    fields = Statement.of({"layers": [{"seam": "a"}, {"seam": "b"}], "sizes": [1, 2]}).fields
    assert fields == {"layers.1.seam": "a", "layers.2.seam": "b", "sizes": [1, 2]}


def test_the_time_to_wait_is_a_number_above_0():
    assert timeout_of({}, 500) == datetime.timedelta(seconds=16)
    variable = "MEGATRON_SEAMS_AGREEMENT_TIMEOUT"
    assert timeout_of({variable: "0.5"}, 4) == datetime.timedelta(seconds=0.5)
    for wrong in ("0", "-1", "soon", "nan", "1e99"):
        with pytest.raises(LaunchInvalid, match=variable):
            timeout_of({variable: wrong}, 4)


def test_one_process_has_nobody_to_agree_with():
    address = {"RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    assert not is_launched({**address, "WORLD_SIZE": "1"})
    assert not is_launched({"RANK": "0", "WORLD_SIZE": "4"})
    assert is_launched({**address, "WORLD_SIZE": "4"})


@pytest.mark.parametrize(("name", "value"), [("RANK", "first"), ("MASTER_PORT", "-1")])
def test_a_launchers_variable_that_is_no_number_is_named(name, value, monkeypatch):
    launched = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for variable, text in {**launched, name: value}.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(LaunchInvalid, match=f"{name}={value}"):
        meeting_here()


def build_on_each(plan):
    """The result or error of ``build_model`` on this rank, where rank 1 differs by the case."""
    from megatron_seams.runtime.cpu.world import cpu_world
    from megatron_seams.runtime.model.build import build_model

    def built(**changes):
        settings = {**plan.megatron, **(changes if rank == 1 else {})}
        settings = {key: value for key, value in settings.items() if value is not None}
        try:
            return type(build_model(plan, settings=settings)).__name__
        except RanksDiffer as error:
            return str(error)

    with cpu_world() as groups:
        rank = groups.dp.rank()
        return {
            "alone": None if rank else type(build_model(plan, on_all_ranks=False)).__name__,
            "another setting": built(hidden_size=64),
            "no setting": built(vocab_size=None),
            "alike": built(),
        }


def test_build_model_agrees_before_it_builds(plan_of):
    ranks = on_ranks(build_on_each, plan_of("*-"), world_size=3)
    for found in ranks:
        assert "rank 1 (on " in found["another setting"]
        assert "): settings.hidden_size is 64, not 32" in found["another setting"]
        assert "no plan, because [SEAM-B07] [megatron] vocab_size" in found["no setting"]
        assert found["alike"].endswith("Model")
    # A model that only one rank builds asks nobody.
    assert ranks[0]["alone"].endswith("Model")


def train_on_each(folder, words):
    """Upstream's trainer with a command line on this rank, until it has a model.

    At first rank 1 has another version of the plugin, and a receipt by it, and rank 2 has none;
    then all have the same, and rank 2 spells another pattern; then all spell the same.
    """
    from megatron.training import arguments, global_vars
    from megatron.training.argument_utils import (
        core_transformer_config_from_args,
        hybrid_config_from_args,
    )
    from megatron.training.models.hybrid import HybridModelBuilder

    from megatron_seams.runtime.checkpoint import RECEIPT
    from megatron_seams.runtime.cpu.world import cpu_world
    from megatron_seams.runtime.model.refused import StackRefused, refusal_behind

    rank = int(os.environ["RANK"])

    def parsed(pattern=None):
        changed = ["--hybrid-layer-pattern", pattern] if pattern and rank == 2 else []
        run = ["--micro-batch-size", "1", "--seq-length", "8"]
        with (
            mock.patch.object(sys, "argv", ["pretrain_hybrid.py", *words, *run, *changed]),
            mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            args = arguments.parse_args()
            arguments.validate_args(args)
        global_vars.set_args(args)
        return args

    def spec(args, site, receipt):
        """Upstream's import of --spec, with these packages."""
        for name in [it for it in sys.modules if it.startswith("acme_rider")]:
            del sys.modules[name]
        sys.modules.pop("megatron_seams.runtime.launch", None)  # it reads the receipt
        os.environ["MEGATRON_SEAMS_RECEIPT"] = str(folder / receipt)
        with mock.patch.object(sys, "path", [*([str(folder / site)] if site else []), *sys.path]):
            return hybrid_config_from_args(args, core_transformer_config_from_args(args))

    def stopped(make):
        try:
            return type(make()).__name__
        except (StackRefused, RanksDiffer) as error:
            return str(refusal_behind(error))

    odd = {1: ("other", "other.json"), 2: (None, "receipt.json")}
    args = parsed()
    found = {"odd": stopped(lambda: spec(args, *odd.get(rank, ("site", "receipt.json"))))}
    found["carried too early"] = hasattr(args, RECEIPT) and rank == 2
    with cpu_world() as groups:
        for name, pattern in {"another pattern": "M*M*", "alike": None}.items():
            args = parsed(pattern)
            builder = HybridModelBuilder(spec(args, "site", "receipt.json"))
            found[name] = stopped(functools.partial(builder.build_model, groups))
    found["carried"] = getattr(args, RECEIPT) == (folder / "receipt.json").read_text()
    return found


def test_under_upstreams_trainer_all_ranks_agree_before_there_is_a_model(tmp_path):
    """Forked ranks; the drill below and scripts/agreement_drill.py start fresh ones."""
    agreement_drill.lay_out(tmp_path)
    printed = registry("args", tmp_path / "recipe.toml", path=[tmp_path / "site"], code=0).stdout
    words = shlex.split(printed)
    assert "megatron_seams.runtime.launch" in words
    ranks = on_ranks(train_on_each, tmp_path, words, world_size=3)
    for found in ranks:
        assert "[SEAM-B11]" in found["odd"]
        assert 'receipt.plan.seams.rider.version is "1.1", not "1.0"' in found["odd"]
        *_, without = found["odd"].partition("rank 2 (on ")
        assert "no plan, because" in without
        assert "[SEAM-R01] a provider for family 'kda'" in without
        assert "[SEAM-B11]" in found["another pattern"]
        assert "no plan, because [SEAM-B09]" in found["another pattern"]
        assert found["alike"] == "HybridModel"
        assert found["carried"]
        assert not found["carried too early"]


def test_ranks_of_a_launcher_stop_and_exit_with_an_error(tmp_path):
    """Rank 1 has another version, 2 lacks the plugin, 3 sleeps; under torchrun, real processes."""
    agreement_drill.lay_out(tmp_path)
    odd = {1: [str(tmp_path / "other")], 2: [], 3: ["sleep"]}
    waits = {"MEGATRON_SEAMS_AGREEMENT_TIMEOUT": "4"}
    ended = agreement_drill.drill(tmp_path, agreement_drill.SMOKE, odd, **waits)
    assert 0 not in ended.codes
    refusal = " ".join(next(filter(None, map(ended.refusal, range(3)))).split())  # it is wrapped
    assert 'receipt.plan.seams.rider.version is "1.1", not "1.0"' in refusal
    assert "rank 2 (on " in refusal
    assert "no plan, because [SEAM-R01]" in refusal
    assert "rank 3: silent for 4 s" in refusal


def test_the_software_that_computes_is_named():
    assert set(software()) == {"megatron-seams", "torch", "transformer-engine", "mamba-ssm"}
    assert software()["torch"] is not None
