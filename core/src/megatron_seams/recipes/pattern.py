"""Layer patterns: from text to one token for each layer. A dialect gives the tokens' families."""

import attrs

from megatron_seams.errors import PatternSyntax

STAGE_BREAK = "|"
MTP_SEPARATOR = "/"

#: The largest depth that is accepted, a hundred times that of the deepest published model; a larger
#: one is a typing error.
MAX_DEPTH = 100_000


@attrs.frozen(kw_only=True)
class Pattern:
    """A pattern as upstream writes it, read and expanded.

    Attributes:
        text: The pattern as the user wrote it.
        dialect: The dialect's name.
        depth: The number of decoder layers.
        tokens: One character for each decoder layer, ``len(tokens) == depth``.
        stages: For each pipeline segment, its number of layers, which may be none; ``(depth,)``
            without ``|``.
        mtp: One character for each layer of *one* MTP depth; empty without MTP.
        mtp_depths: How many MTP depths there are.
    """

    text: str
    dialect: str
    depth: int
    tokens: str
    stages: tuple[int, ...]
    mtp: str = ""
    mtp_depths: int = 0

    def positions(self) -> dict[str, list[int]]:
        """Token -> the 1-based numbers of its decoder layers, in the order of appearance."""
        where: dict[str, list[int]] = {}
        for number, token in enumerate(self.tokens, start=1):
            where.setdefault(token, []).append(number)
        return where


def parse_pattern(text: str, *, dialect: str, depth: int | None = None) -> Pattern:
    """Read ``MAIN[/MTP[/MTP...]]``, where MAIN may hold ``|`` and repeats up to ``depth``.

    Layer ``i`` (from 0) of the expanded pattern is ``MAIN[i % len(MAIN)]``. As upstream reads it, a
    segment between two ``|`` may be empty (a stage without layers), and separators without any MTP
    part stand for no MTP.

    Args:
        text: The pattern.
        dialect: The dialect's name, kept with the pattern.
        depth: The number of decoder layers; the pattern's own length if None. With ``|`` in the
            pattern the two must agree: a pattern with stages is never repeated, since nobody wrote
            stages for the repeated part.

    Raises:
        PatternSyntax: The text is no such pattern, or does not fit ``depth``.
    """
    main, *suffixes = text.split(MTP_SEPARATOR)
    suffixes = suffixes if any(suffixes) else []
    segments = main.split(STAGE_BREAK)
    tile = "".join(segments)
    _check(text, tile, suffixes, segments, depth)
    depth = len(tile) if depth is None else depth
    tokens = (tile * -(-depth // len(tile)))[:depth]
    stages = tuple(map(len, segments)) if len(segments) > 1 else (depth,)
    return Pattern(
        text=text,
        dialect=dialect,
        depth=depth,
        tokens=tokens,
        stages=stages,
        mtp=suffixes[0] if suffixes else "",
        mtp_depths=len(suffixes),
    )


def _check(
    text: str, tile: str, suffixes: list[str], segments: list[str], depth: int | None
) -> None:
    problem = ""
    if not tile:
        problem = "its decoder has no layer"
    elif text.split() != [text]:
        problem = "it contains white space"
    elif len(segments) > 1 and depth is not None and depth != len(tile):
        problem = f"its stages hold {len(tile)} layers and the depth is {depth}"
    elif depth is not None and not 1 <= depth <= MAX_DEPTH:
        problem = f"the depth is {depth}, and not from 1 to {MAX_DEPTH}"
    elif suffixes:
        problem = _mtp_problem(suffixes)
    if problem:
        raise PatternSyntax(
            asked=f"the layers of pattern {text!r}",
            found=problem,
            next="write MAIN, MAIN|MAIN with as many layers as the depth, or MAIN/MTP/MTP with "
            "equal MTP parts",
            subject=text,
        )


def _mtp_problem(suffixes: list[str]) -> str:
    if not all(suffixes):
        return "an MTP part after '/' has no layer"
    if any(STAGE_BREAK in suffix for suffix in suffixes):
        return "an MTP part contains '|'; it lives on the last stage"
    if len(set(suffixes)) > 1:
        return f"its MTP parts differ: {', '.join(dict.fromkeys(suffixes))}"
    return ""
