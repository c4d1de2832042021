"""The proof of a smoke run: the files that it saves for a later Megatron, and their digests."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from megatron_seams.base.canonical_json import json_digest, json_text
from megatron_seams.base.files import in_words, read_file, replace_text
from megatron_seams.errors import ProofUnreadable

SCHEMA: Final = 1
KIND: Final = "megatron-seams proof"

_MAX_BYTES: Final = 16 * 1024 * 1024
_MOST_BYTES: Final = 4 * 1024**3
#: The file that lists the others; without it a folder is no proof.
INDEX: Final = "proof.json"
RECEIPT: Final = "receipt.json"
PROBE: Final = "probe.pt"
CHECKPOINT: Final = "checkpoint"


@attrs.frozen(kw_only=True)
class Proof:
    """A folder with a receipt, a probe and a checkpoint.

    Attributes:
        folder: The folder.
        megatron_core: The version that trained and saved the model.
        settings: The native settings of the toy model.
    """

    folder: Path
    megatron_core: str
    settings: Mapping[str, Any]

    @property
    def receipt(self) -> Path:
        """The receipt of the plan that was trained."""
        return self.folder / RECEIPT

    @property
    def probe(self) -> Path:
        """The file of token ids, losses and logits."""
        return self.folder / PROBE

    @property
    def checkpoint(self) -> Path:
        """Upstream's own checkpoint folder."""
        return self.folder / CHECKPOINT


def write_index(proof: Proof) -> None:
    """Write the index over the files that are there; the last step of making a proof."""
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "megatron_core": proof.megatron_core,
        "settings": dict(proof.settings),
        "files": _digests(proof.folder),
    }
    body["digest"] = json_digest(body)
    replace_text(proof.folder / INDEX, json_text(body))


def read_proof(folder: Path) -> Proof:
    """Read a proof and check its files against their digests.

    Raises:
        ProofUnreadable: The folder is no proof, one of another schema, or a file is missing, new or
            changed.
    """

    def unreadable(found: str) -> ProofUnreadable:
        return ProofUnreadable(
            asked="the proof of a smoke run",
            found=found,
            next="make a new one: a smoke run on the Megatron that needs the seam",
            subject=str(folder),
            file=str(folder / INDEX),
        )

    try:
        body = json.loads(read_file(folder / INDEX, _MAX_BYTES).decode("utf-8"))
        if not isinstance(body, dict) or (body.get("kind"), body.get("schema")) != (KIND, SCHEMA):
            raise unreadable(f"it is not a {KIND} of schema {SCHEMA}")
        proof = Proof(
            folder=folder,
            megatron_core=str(body["megatron_core"]),
            settings=dict(body["settings"]),
        )
        stated, there = dict(body["files"]), _digests(folder)
        stated_digest = body.pop("digest")
        edited = stated_digest != json_digest(body)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise unreadable(f"{kind}{in_words(error)}") from error
    if edited:
        raise unreadable("it was edited afterwards")
    changed = sorted(name for name in stated.keys() | there if stated.get(name) != there.get(name))
    if changed:
        raise unreadable(f"missing, new or changed since it was made: {', '.join(changed)}")
    return proof


def _digests(folder: Path) -> dict[str, str]:
    """Path inside the folder -> SHA-256, for every file but the index and later reports."""
    parts = [folder / RECEIPT, folder / PROBE, *sorted((folder / CHECKPOINT).rglob("*"))]
    files = [file for file in parts if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if size > _MOST_BYTES:
        message = f"its files have {size:,} bytes, and those of a toy model at most {_MOST_BYTES:,}"
        raise ValueError(message)
    return {file.relative_to(folder).as_posix(): _digest(file) for file in files}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
