"""Numbers in messages: counts with their nouns, and ranges."""

from collections.abc import Iterable, Sequence


def counted(count: int, noun: str) -> str:
    """A count with its noun, whose plural ends in s: ``1 layer``, ``2 layers``."""
    return f"{count} {_inflected(noun, count)}"


def numbered(noun: str, numbers: Sequence[int]) -> str:
    """Ascending numbers behind the noun that they number: ``layer 3``, ``layers 1-3, 5``."""
    return f"{_inflected(noun, len(numbers))} {ranges(numbers)}"


def _inflected(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as text, those that follow one another as a range: ``1-3, 5, 7-8``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
