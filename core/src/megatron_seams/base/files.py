"""Reading small files: of an environment's thousands, what ``open`` does beside it would count."""

import os

_CHUNK = 64 * 1024


def read_bytes(path: str, most: int | None = None) -> bytes:
    """The contents of a file.

    Args:
        path: The file.
        most: Read no more bytes than this.

    Raises:
        OSError: It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.read(descriptor, _CHUNK if most is None else most)
        # A read may stop short of the end; only one that gives nothing is at it.
        while (most is None or len(data) < most) and (part := os.read(descriptor, _CHUNK)):
            data += part
        return data[:most]
    finally:
        os.close(descriptor)


def read_text(path: str) -> str:
    """The contents of a file in UTF-8, each line ending in one newline however it was written.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    text = read_bytes(path).decode("utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
