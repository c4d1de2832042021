"""Numbers in messages."""

from megatron_seams.base.wording import counted, numbered, ranges


def test_a_count_has_its_noun() -> None:
    assert [counted(count, "rank") for count in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]


def test_numbers_that_follow_one_another_are_a_range() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges([]) == ""
    assert numbered("layer", [3]) == "layer 3"
    assert numbered("layer", (1, 2, 3, 5)) == "layers 1-3, 5"
