"""Token compression: one id for all tokens with the same normalised text.

``The``, `` the`` and ``thé`` are three tokens and one word to a memory of n-grams. Each token's
text is put into NFKC and then NFD, loses its accents and its case, and has runs of white space made
one space, with none at its ends unless it is nothing else (arXiv:2601.07372: about 23% fewer ids).
Tokens with equal results get one id.

The table is built once for a tokenizer, from a JSON array with the text of each token in the order
of the ids, and null for those without a text of their own (control tokens, pieces of a
character)::

    python -m megatron_seams_ngram.engram.compression TEXTS.json TABLE.json

It prints what a recipe wants: the file and its SHA-256.
"""

import argparse
import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_seams.errors import FeatureInvalid

KIND = "megatron-seams n-gram token compression"
SCHEMA = 1
_SPACES = re.compile(r"[ \t\r\n]+")
#: The mark of bytes that are no character: such a token is a piece, without a text to compare.
_PIECE = "\N{REPLACEMENT CHARACTER}"


def canonical(text: str) -> str:
    """Normalise a token's text, to compare it with others."""
    spread = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    bare = "".join(letter for letter in spread if unicodedata.category(letter) != "Mn")
    spaced = _SPACES.sub(" ", bare.lower())
    return spaced.strip() or spaced


def compress(texts: Sequence[str | None]) -> tuple[int, ...]:
    """Give tokens with the same normalised text one id.

    Args:
        texts: The text of each token, by its id; None for a token that stays by itself.

    Returns:
        Token id -> new id; the new ones are counted from 0 in the order of the tokens.
    """
    new: dict[object, int] = {}
    return tuple(
        new.setdefault(
            token if text is None or not text or _PIECE in text else canonical(text) or text,
            len(new),
        )
        for token, text in enumerate(texts)
    )


def write_table(texts: Path, table: Path) -> str:
    """Build the table of a file of texts.

    Returns:
        The table's SHA-256.

    Raises:
        FeatureInvalid: The file is no JSON array of strings and nulls.
    """
    read = _json(texts)
    if not isinstance(read, list) or not all(isinstance(one, str | None) for one in read):
        raise _invalid(texts, "it is not a JSON array of strings and nulls")
    body = {"kind": KIND, "schema": SCHEMA, "ids": list(compress(read))}
    data = (json.dumps(body) + "\n").encode()
    table.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_table(path: Path, *, sha256: str, vocab_size: int) -> tuple[int, ...]:
    """Read a table for a model.

    Args:
        path: The file.
        sha256: What its digest is.
        vocab_size: Rows of the word embedding; the table has at most as many.

    Returns:
        Token id -> new id.

    Raises:
        FeatureInvalid: The file is another one, or no table, or of a larger vocabulary.
    """
    body = _json(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise _invalid(path, f"its SHA-256 is {found}, and the recipe says {sha256}")
    if not isinstance(body, dict) or (body.get("kind"), body.get("schema")) != (KIND, SCHEMA):
        raise _invalid(path, f"it is no {KIND} of schema {SCHEMA}")
    ids = tuple(body["ids"])
    if len(ids) > vocab_size:
        raise _invalid(path, f"it is of {len(ids)} tokens, and the model has {vocab_size}")
    return ids


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _invalid(path, str(error)) from error


def _invalid(path: Path, found: str) -> FeatureInvalid:
    return FeatureInvalid(
        asked=f"the token compression of {path}",
        found=found,
        next="build it for the model's tokenizer: python -m "
        "megatron_seams_ngram.engram.compression TEXTS.json TABLE.json",
        subject="engram",
        file=str(path),
        key="seams.engram.compression-file",
    )


def main() -> None:
    """Build a table and print the lines for a recipe."""
    parser = argparse.ArgumentParser(description="Build a token compression table.")
    parser.add_argument("texts", type=Path, help="JSON array: the text of each token, or null")
    parser.add_argument("table", type=Path, help="the file to write")
    asked = parser.parse_args()
    digest = write_table(asked.texts, asked.table)
    ids = read_table(asked.table, sha256=digest, vocab_size=2**63)
    print(f"# {len(ids)} tokens, {len(set(ids))} ids")
    print(f"compression-file = {json.dumps(str(asked.table))}")
    print(f'compression-sha256 = "{digest}"')


if __name__ == "__main__":
    main()
