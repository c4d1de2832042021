"""Text for the smoke run: bytes, a part of which is held back, and windows of them."""

import math
import sysconfig
from pathlib import Path
from typing import Final

import attrs
import torch
from torch import Tensor

from megatron_seams.base.files import in_words
from megatron_seams.errors import DataInvalid

#: The size of the largest file that is read: the toy model sees megabytes of it.
_MOST_BYTES: Final = 1024**3
#: The share at the end of the text that no training step sees.
HELD_BACK: Final = 0.1

#: Modules of Python's standard library, as old as Python 3 and on every installation of it.
_SOURCES: Final = (
    "_pydecimal.py",
    "argparse.py",
    "ast.py",
    "calendar.py",
    "codecs.py",
    "collections/__init__.py",
    "configparser.py",
    "csv.py",
    "datetime.py",
    "difflib.py",
    "doctest.py",
    "enum.py",
    "fractions.py",
    "functools.py",
    "gettext.py",
    "heapq.py",
    "http/client.py",
    "http/cookiejar.py",
    "inspect.py",
    "ipaddress.py",
    "json/decoder.py",
    "locale.py",
    "logging/__init__.py",
    "mailbox.py",
    "optparse.py",
    "pathlib.py",
    "pickle.py",
    "platform.py",
    "random.py",
    "shutil.py",
    "socket.py",
    "statistics.py",
    "subprocess.py",
    "tarfile.py",
    "textwrap.py",
    "threading.py",
    "traceback.py",
    "typing.py",
    "uuid.py",
    "zipfile.py",
)
_LICENCE: Final = "LICENSE.txt"


@attrs.frozen(kw_only=True, eq=False)
class Text:
    """Bytes as tokens.

    Attributes:
        source: The file's name, or a description of it.
        training: [n] uint8, all but the last tenth.
        held_back: [m] uint8, the last tenth.
    """

    source: str
    training: Tensor
    held_back: Tensor


def read_text(path: Path | None, *, sequence: int) -> Text:
    """Read a file, or Python's own sources, as bytes.

    Args:
        path: The file; the licence and sources of the running Python's standard library if None.
            They are the same bytes on every machine with that Python, and need no download.
        sequence: The length of a window; each part is longer than one.

    Raises:
        DataInvalid: The file cannot be read, or is too short or too long.
    """
    try:
        data = _standard_library() if path is None else _bytes(path)
    except OSError as error:
        raise _no_text(path, in_words(error), "name a file that can be read") from error
    tokens = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0)
    cut = tokens.numel() - math.ceil(HELD_BACK * tokens.numel())
    training, held_back = tokens[:cut], tokens[cut:]
    if min(training.numel(), held_back.numel()) <= sequence:
        least = math.ceil((sequence + 1) / HELD_BACK)
        raise _no_text(path, f"it has {len(data)} bytes; windows of {sequence} need {least}")
    source = "the standard library's sources" if path is None else path.name
    return Text(source=source, training=training, held_back=held_back)


def _standard_library() -> bytes:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [root / name for name in (_LICENCE, *sorted(_SOURCES))]
    # Distributions move the licence, and releases turn a module into a package.
    return b"".join(file.read_bytes() for file in files if file.is_file())


def _bytes(path: Path) -> bytes:
    """The bytes of a file, or of a pipe; of a device that never ends, one more than are taken."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise _no_text(path, f"it has more than {_MOST_BYTES:,} bytes", "name a shorter text file")
    return data


def _no_text(path: Path | None, found: str, advice: str = "name a longer text file") -> DataInvalid:
    return DataInvalid(
        asked=f"text to train on from {path or 'the standard library'}",
        found=found,
        next=advice,
        subject=str(path or "standard library"),
    )


def draw_windows(tokens: Tensor, *, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Windows at random places.

    Args:
        tokens: [n] uint8.
        batch: The number of windows.
        length: The length of a window.
        generator: The source of the places.

    Returns:
        [batch, length] int64.
    """
    places = torch.randint(tokens.numel() - length + 1, (batch,), generator=generator)
    return tokens[places[:, None] + torch.arange(length)].long()


def spread_windows(tokens: Tensor, *, count: int, length: int) -> Tensor:
    """At most ``count`` windows, evenly spread, that do not overlap: [<= count, length] int64."""
    count = min(count, tokens.numel() // length)
    stride = tokens.numel() // count
    places = torch.arange(count) * stride
    return tokens[places[:, None] + torch.arange(length)].long()


def unigram_entropy(tokens: Tensor) -> float:
    """The entropy of the text's own byte frequencies, in nats per byte.

    No model that ignores the context can have a lower loss on this text.
    """
    counts = torch.bincount(tokens.long(), minlength=256).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())
