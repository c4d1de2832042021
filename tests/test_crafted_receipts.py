"""Receipts with a digest of their own and parts that no receipt has: anybody can make them."""

import contextlib
import copy
import datetime
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from megatron_seams.base.canonical_json import json_text
from megatron_seams.errors import ReceiptUnreadable, SeamsError
from megatron_seams.planning.resolver import resolve
from megatron_seams.records.accept import Acceptance, accept
from megatron_seams.records.held import held
from megatron_seams.records.receipt import make_receipt, parse_receipt, receipt_digest
from megatron_seams.records.verify import verify
from seam_support import TODAY, environment, make_seam, recipe

MEMORY = make_seam("memory", "ngram", placement="embedding")
BEFORE, AFTER = (
    environment(make_seam("kda", "kda", slots=["mamba_layer"], version=version), MEMORY)
    for version in ("1.0", "2.0")
)
ASKED = recipe("K*E/M*", tokens={"K": "kda"}, features=[{"family": "ngram"}])
#: What a part is replaced by; nothing leaves it out.
OTHERS: Final = (..., 3, {"x": 1})


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a receipt with layers of a seam, MTP, a feature and an acceptance."""
    file = tmp_path_factory.mktemp("receipt") / "receipt.json"
    file.write_text(make_receipt(resolve(ASKED, BEFORE), ASKED))
    when = datetime.date(2026, 12, 1)
    assert accept(file, AFTER, Acceptance(by="us", reason="Reviewed.", when=when))
    return file.read_text()


def places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Where each part of a value is; of a list, the first two."""
    yield path
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value[:2])
    for key, part in parts:
        yield from places(part, (*path, key))


def crafted(body: dict[str, Any], path: tuple[Any, ...], other: Any) -> str:
    made = copy.deepcopy(body)
    holder = made
    for key in path[:-1]:
        holder = holder[key]
    if other is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = other
    del made["digest"]
    made["digest"] = receipt_digest(made)
    return json_text(made)


@pytest.mark.parametrize("part", ["plan", "accepted", "software"])
def test_a_receipt_is_unreadable_or_is_compared(part: str, accepted: str, tmp_path: Path) -> None:
    body = json.loads(accepted)
    file = tmp_path / "receipt.json"
    read = 0
    for path in places(body[part], (part,)):
        for other in OTHERS:
            text = crafted(body, path, other)
            with contextlib.suppress(ReceiptUnreadable):
                parse_receipt(text, "a test")
                read += 1
                file.write_text(text)
                found = [*verify(file, AFTER, today=TODAY), *held(text, accepted, "a checkpoint")]
                found += held(accepted, text, "a checkpoint")
                assert all(isinstance(it, SeamsError) for it in found)
    assert read > 3
