"""Token compression: which texts read alike, and files that are not what a recipe says."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_seams.base.structure import structure
from megatron_seams.errors import FeatureInvalid
from megatron_seams_ngram.engram.compression import (
    KIND,
    canonical,
    compress,
    read_table,
    write_table,
)
from megatron_seams_ngram.engram.options import Options


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("The", "the"),
        (" the", "the"),
        ("the ", "the"),
        ("thé", "the"),
        ("the\u0301", "the"),
        ("\uff34\uff28\uff25", "the"),  # full-width letters, which NFKC narrows
        ("ﬁne", "fine"),
        ("x²", "x2"),
        ("İ", "i"),
        ("a\t\n b", "a b"),
        ("\u00a0\u2003", " "),
        ("\n\n", " "),
        (" ", " "),
        ("ß", "ß"),
        ("Ω", "ω"),
        ("\u0451", "\u0435"),  # Cyrillic
        ("", ""),
        # As the demonstration's normaliser (tokenizers 0.23.3) has them: marks that take space or
        # enclose; capitals by themselves, and not as in a word; Unicode's white space alone.
        ("का", "क"),
        ("क\u20dd", "क"),
        ("ΟΔΟΣ", "οδοσ"),
        ("ας", "ας"),
        ("\x1c", "\x1c"),
        (" \x1c", "\x1c"),
        (" \x0b", ""),
        ("\x85", ""),
        ("\u2028", ""),
        ("\ue000", " "),
    ],
)
def test_what_a_text_is_compared_by(text: str, reads: str) -> None:
    assert canonical(text) == reads
    assert canonical(reads) == reads


def test_tokens_that_read_alike_get_one_id_in_the_order_of_the_tokens() -> None:
    texts = ["<s>", "the", " The", "b", "THÉ", "\n", " ", "B"]
    assert compress(texts) == (0, 1, 1, 2, 1, 3, 3, 2)


def test_control_tokens_and_pieces_of_a_character_stay_apart() -> None:
    piece = "\N{REPLACEMENT CHARACTER}"
    assert compress([None, None, piece, piece, f"a{piece}", "", "a"]) == tuple(range(7))
    assert compress(["", "\x0b", " \x0b", ""]) == (0, 1, 2, 0)  # texts of nothing are themselves


def test_pieces_of_a_character_are_compared_by_the_tokenizers_own_strings() -> None:
    piece = "\N{REPLACEMENT CHARACTER}"
    texts = ["a", piece, "ł", piece, piece, None]
    # A byte's letter, which some other token has as its text.
    assert compress(texts, ["a", "ł", "ÅĤ", "ģ", "ģ", "ģ"]) == (0, 1, 1, 2, 2, 3)
    assert compress(texts) == (0, 1, 2, 3, 4, 5)


def test_the_command_builds_the_file_that_a_recipe_names(tmp_path: Path) -> None:
    texts, tokens = ["a", "A", None, "\N{REPLACEMENT CHARACTER}"], ["a", "A", "<s>", "a"]
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    (tmp_path / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "megatron_seams_ngram.engram.compression"),
            *(str(tmp_path / "texts.json"), str(tmp_path / "table.json")),
            *("--tokens", str(tmp_path / "tokens.json")),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    printed = dict(line.split(" = ") for line in done.stdout.splitlines()[1:])
    assert done.stdout.startswith("# 4 tokens, 2 ids\n")
    options = {key: json.loads(value) for key, value in printed.items()}
    read, faults = structure(Options, options)
    assert not faults
    assert read is not None
    assert read.compression_file is not None
    assert read.compression_sha256 is not None
    table = read_table(Path(read.compression_file), sha256=read.compression_sha256, vocab_size=1000)
    assert table == (0, 0, 1, 0)


@pytest.mark.parametrize(
    ("contents", "says"),
    [("{", "Expecting"), ('{"a": 1}', "not a JSON array"), ('["a", 1]', "not a JSON array")],
)
def test_texts_that_are_none_are_refused(tmp_path: Path, contents: str, says: str) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text(contents)
    with pytest.raises(FeatureInvalid) as caught:
        write_table(texts, tmp_path / "table.json")
    assert says in caught.value.found
    assert not (tmp_path / "table.json").exists()


def test_strings_of_another_number_of_tokens_are_refused(tmp_path: Path) -> None:
    texts, tokens = tmp_path / "texts.json", tmp_path / "tokens.json"
    texts.write_text('["a", "b"]')
    tokens.write_text('["a"]')
    with pytest.raises(FeatureInvalid, match=r"it is of 1 tokens, and .* of 2"):
        write_table(texts, tmp_path / "table.json", tokens=tokens)
    assert not (tmp_path / "table.json").exists()


def test_a_table_that_is_not_the_recipes_is_refused(tmp_path: Path) -> None:
    texts, table = tmp_path / "texts.json", tmp_path / "table.json"
    texts.write_text(json.dumps(["a", "b", "c"]))
    digest = write_table(texts, table)

    def fault(**asked: Any) -> str:
        with pytest.raises(FeatureInvalid) as caught:
            read_table(table, **{"sha256": digest, "vocab_size": 8, **asked})
        assert caught.value.file == str(table)
        return caught.value.found

    assert "the recipe says 00" in fault(sha256="00")
    assert fault(vocab_size=2) == "it is of 3 tokens, and the model has 2"
    for ids, says in (
        (None, "no list of ids"),
        ([], "no list of ids"),
        (["a"], "no list of ids"),
        ([True], "no list of ids"),
        ([0, 2], "not all from 0 to 2"),
        ([0, -1], "not all from 0 to 0"),
    ):
        text = json.dumps({"kind": KIND, "schema": 1, "ids": ids})
        table.write_text(text)
        assert says in fault(sha256=hashlib.sha256(text.encode()).hexdigest())
    table.write_text("[]")
    assert "no megatron-seams" in fault(sha256=hashlib.sha256(b"[]").hexdigest())
    table.unlink()
    assert "No such file" in fault()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"compression-file": "a.json"}, "both or neither"),
        ({"compression-sha256": "0" * 64}, "both or neither"),
        ({"compression-file": "a", "compression-sha256": "0" * 63}, "64 hexadecimal digits"),
        ({"orders": [1, 2]}, "expected 2 and above"),
        ({"kernel": 0}, "'kernel' must be >= 1"),
        ({"backend": "cuda"}, "expected one of 'cpu', 'triton', 'torch'"),
    ],
)
def test_options_that_do_not_fit_are_refused(table: dict[str, Any], says: str) -> None:
    value, faults = structure(Options, table)
    assert value is None
    assert says in faults[0].message
