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
        parts: list[bytes] = []
        left = _CHUNK if most is None else most
        while left and (part := os.read(descriptor, min(left, _CHUNK))):
            parts.append(part)
            left = _CHUNK if most is None else left - len(part)
        return b"".join(parts)
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
