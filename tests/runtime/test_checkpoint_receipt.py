"""Checkpoints remember the receipt: the same loads, another is refused and nothing is loaded."""

import argparse
import json
import sys
import types

import pytest

from megatron_seams.errors import Refusal
from megatron_seams.recipes.recipe import Model, Parallelism, Recipe
from megatron_seams.records.accept import Acceptance
from megatron_seams.records.receipt import body_digest, make_receipt, receipt_digest, receipt_text

pytestmark = [pytest.mark.megatron, pytest.mark.release]


def recipe(plan, **megatron):
    model = Model(name="m", pattern=plan.pattern.text, dialect="megatron")
    return Recipe(schema=1, model=model, megatron={**plan.megatron, **megatron})


def edited(text, old, new):
    """A receipt of another plan, with a digest of its own, as another environment writes it."""
    body = json.loads(text.replace(old, new))
    body["digest"] = receipt_digest(body)
    return json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@pytest.fixture(scope="module")
def saved(world, plan_of, tmp_path_factory):  # noqa: ARG001  # the model needs a world
    """A model, its receipt, and a folder with its checkpoints: with the receipt and without."""
    from megatron.core import dist_checkpointing

    from megatron_seams.runtime.checkpoint import RECEIPT, save_checkpoint
    from megatron_seams.runtime.model.build import build_model

    folder = tmp_path_factory.mktemp("checkpoints")
    plan = plan_of("*K", seams=("rider",), tokens={"K": "recurrent"})
    text = make_receipt(plan, recipe(plan))
    model = build_model(plan)
    args = argparse.Namespace(hidden_size=32, **{RECEIPT: text})
    states = {"none": {}, "iter_0000007": {"args": args}, "release": {"args": args}}
    (folder / "own").mkdir()
    save_checkpoint(model, text, folder / "own")
    for name, common in states.items():
        (folder / name).mkdir()
        dist_checkpointing.save({**model.sharded_state_dict(), **common}, str(folder / name))
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    return types.SimpleNamespace(folder=folder, model=model, text=text, plan=plan)


def refused(saved, receipt, name="own"):
    """The error of loading; the model keeps its weights."""
    import torch

    from megatron_seams.runtime.checkpoint import load_checkpoint

    for weight in saved.model.parameters():
        torch.nn.init.constant_(weight, 7.0)
    try:
        load_checkpoint(saved.model, saved.folder / name, receipt)
    except Refusal as refusal:
        assert all(bool((weight == 7.0).all()) for weight in saved.model.parameters())
        return str(refusal)
    assert not all(bool((weight == 7.0).all()) for weight in saved.model.parameters())
    return ""


def test_the_same_receipt_loads(saved):
    assert refused(saved, saved.text) == ""


def test_another_layout_of_the_same_model_loads(saved):
    import attrs

    other = attrs.evolve(recipe(saved.plan), parallelism=Parallelism(tensor_parallel=2))
    assert refused(saved, make_receipt(saved.plan, other)) == ""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"seam": "rider"', '"seam": "another"', "layers.2: K recurrent: seam rider"),
        ('"version": "0.1"', '"version": "0.2"', "seams.rider.version: 0.1"),
        ('"hidden_size": 32', '"hidden_size": 64', "megatron.hidden_size: 32"),
        ('"surface_digest": "', '"surface_digest": "0', "megatron_core.surface_digest"),
    ],
)
def test_another_model_is_refused_and_nothing_is_loaded(saved, old, new, expected):
    assert old in saved.text
    text = refused(saved, edited(saved.text, old, new))
    assert "SEAM-V05" in text
    assert expected in text


def test_what_was_accepted_on_the_record_loads(saved):
    import datetime

    body = json.loads(edited(saved.text, '"version": "0.1"', '"version": "0.2"'))
    entry = Acceptance(by="A Person", reason="Reviewed.", when=datetime.date(2026, 11, 25))
    kept = json.loads(saved.text)
    accepted = {
        "by": entry.by,
        "reason": entry.reason,
        "date": entry.when.isoformat(),
        "previous_digest": kept["digest"],
        "previous_body": body_digest(kept),
        "differences": [],
    }
    text = receipt_text(body["plan"], body["request"], [accepted])
    assert refused(saved, text) == ""


def test_a_tampered_receipt_is_refused(saved, monkeypatch):
    from megatron_seams.runtime import checkpoint

    tampered = saved.text.replace('"version": "0.1"', '"version": "0.2"')
    monkeypatch.setattr(checkpoint, "saved_receipt", lambda _: tampered)
    assert "SEAM-V01" in refused(saved, saved.text)


def test_a_checkpoint_without_a_receipt_is_a_warning(saved, caplog):
    assert refused(saved, saved.text, "none") == ""
    assert "has no receipt" in caplog.text


def test_other_software_is_a_warning(saved, caplog):
    other = json.loads(saved.text)
    other["software"]["torch"] = "1.0"
    other["digest"] = receipt_digest(other)
    text = json.dumps(other, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert refused(saved, text) == ""
    assert "torch" in caplog.text
    assert "here it is 1.0" in caplog.text


def test_upstreams_arguments_carry_the_receipt_and_are_compared(saved, monkeypatch):
    from megatron_seams.runtime.checkpoint import RECEIPT, saved_receipt
    from megatron_seams.runtime.trainer import remember

    assert saved_receipt(saved.folder / "iter_0000007") == saved.text
    arguments = argparse.Namespace(load=str(saved.folder), pretrained_checkpoint=None)
    held = types.SimpleNamespace(_GLOBAL_ARGS=arguments)
    monkeypatch.setitem(sys.modules, "megatron.training.global_vars", held)
    remember.remember(saved.text)
    assert getattr(arguments, RECEIPT) == saved.text
    with pytest.raises(Refusal, match="SEAM-V05"):
        remember.remember(edited(saved.text, '"version": "0.1"', '"version": "0.2"'))
    assert remember.resumed(arguments) == saved.folder / "iter_0000007"
    arguments.ckpt_step = 3
    assert remember.resumed(arguments) == saved.folder / "iter_0000003"
    arguments.load, arguments.pretrained_checkpoint = "nowhere", str(saved.folder)
    assert remember.resumed(arguments) == saved.folder / "iter_0000007"
    (saved.folder / "latest_checkpointed_iteration.txt").write_text("release\n")
    assert remember.resumed(arguments) == saved.folder / "release"


def test_outside_the_trainer_nothing_is_remembered(saved, monkeypatch):
    from megatron_seams.runtime.trainer import remember
    from megatron_seams.runtime.trainer.running import trainers_arguments

    monkeypatch.delitem(sys.modules, "megatron.training.global_vars", raising=False)
    assert trainers_arguments() is None
    remember.remember(saved.text)


def test_a_save_killed_at_any_moment_leaves_the_earlier_checkpoint_and_its_receipt(saved, tmp_path):
    import random

    from killed_saves import FIRST, SECOND, kill_saves

    ends = kill_saves(saved.plan, saved.model, saved.text, tmp_path, 4, random.Random(1))  # noqa: S311
    assert [end.loaded and end.receipt == saved.text for end in ends] == [True] * 5
    assert ends[0].named == SECOND  # left to its end, a save replaces the first
    assert {end.named for end in ends} <= {FIRST, SECOND}
