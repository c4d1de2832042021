"""Token compression: one id for all tokens with the same normalised text.

``The``, `` the`` and ``thé`` are three tokens and one word to a memory of n-grams. Each token's
text is put into NFKC and then NFD, loses its marks and its case, and has runs of white space made
one space, with none at its ends unless it is nothing else (arXiv:2601.07372: about 23% fewer ids).
Tokens with equal results get one id.

Ids are counted in the order of the tokens, so that one text that is read otherwise moves all that
follow. This is therefore what the official demonstration computes, letter for letter: marks are all
of Unicode's, those that take space too; a letter's case does not depend on its neighbours; and a
piece of a character, which has no text, is compared by the tokenizer's own string for it.

The table is built once for a tokenizer, from a JSON array with the text of each token in the order
of the ids, and null for a token that is to stay by itself; and from the tokenizer's own strings,
for the pieces of characters::

    python -m megatron_seams_ngram.engram.compression TEXTS.json TABLE.json --tokens TOKENS.json

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
#: Unicode's white space. Python's own strips the separators U+001C to U+001F, too.
_WHITE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
    "\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
#: What the demonstration keeps a single space by: one of a text's own becomes a space, too.
_SENTINEL = "\ue000"
#: The mark of bytes that are no character: such a token is a piece, without a text to compare.
_PIECE = "\N{REPLACEMENT CHARACTER}"


def canonical(text: str) -> str:
    """Normalise a token's text, to compare it with others."""
    spread = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    # Each letter by itself: a word's last sigma would depend on where the word ends.
    bare = "".join(
        letter.lower() for letter in spread if not unicodedata.category(letter).startswith("M")
    )
    spaced = _SPACES.sub(" ", bare)
    return spaced if spaced == " " else spaced.strip(_WHITE).replace(_SENTINEL, " ")


def compress(
    texts: Sequence[str | None], tokens: Sequence[str | None] | None = None
) -> tuple[int, ...]:
    """Give tokens with the same normalised text one id.

    Args:
        texts: The text of each token, by its id; None for a token that stays by itself.
        tokens: The tokenizer's own string of each token. A piece of a character is compared by it,
            with the texts of others, too; left out, such a piece stays by itself.

    Returns:
        Token id -> new id; the new ones are counted from 0 in the order of the tokens.
    """
    new: dict[object, int] = {}
    own: Sequence[str | None] = [None] * len(texts) if tokens is None else tokens
    found = []
    for token, (text, string) in enumerate(zip(texts, own, strict=True)):
        key: object = token
        if text is not None and _PIECE not in text:
            key = canonical(text) or text
        elif text is not None and string is not None:
            key = string
        found.append(new.setdefault(key, len(new)))
    return tuple(found)


def write_table(texts: Path, table: Path, *, tokens: Path | None = None) -> str:
    """Build the table of a file of texts.

    Args:
        texts: A JSON array of the texts and nulls, as :func:`compress` has them.
        table: The file to write.
        tokens: A JSON array of the tokenizer's own strings, or None.

    Returns:
        The table's SHA-256.

    Raises:
        FeatureInvalid: A file is no JSON array of strings and nulls, or the two are not of as many
            tokens.
    """
    read = _strings(texts)
    own = None if tokens is None else _strings(tokens)
    if tokens is not None and own is not None and len(own) != len(read):
        raise _invalid(tokens, f"it is of {len(own)} tokens, and {texts} of {len(read)}")
    body = {"kind": KIND, "schema": SCHEMA, "ids": list(compress(read, own))}
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
    ids = body.get("ids")
    if not isinstance(ids, list) or not ids or not all(type(one) is int for one in ids):
        raise _invalid(path, "it has no list of ids")
    # Counted from 0 without gaps, as they are made: the multipliers are bounded by their number.
    if set(ids) != set(range(max(ids) + 1)):
        raise _invalid(path, f"its ids are not all from 0 to {max(ids)}")
    if len(ids) > vocab_size:
        raise _invalid(path, f"it is of {len(ids)} tokens, and the model has {vocab_size}")
    return tuple(ids)


def _strings(path: Path) -> list[str | None]:
    read = _json(path)
    if not isinstance(read, list) or not all(isinstance(one, str | None) for one in read):
        raise _invalid(path, "it is not a JSON array of strings and nulls")
    return read


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
    parser.add_argument(
        "--tokens",
        type=Path,
        help="JSON array: the tokenizer's own string of each token, for pieces of a character",
    )
    asked = parser.parse_args()
    digest = write_table(asked.texts, asked.table, tokens=asked.tokens)
    ids = read_table(asked.table, sha256=digest, vocab_size=2**63)
    print(f"# {len(ids)} tokens, {len(set(ids))} ids")
    print(f"compression-file = {json.dumps(str(asked.table))}")
    print(f'compression-sha256 = "{digest}"')


if __name__ == "__main__":
    main()
