"""The smoke run's text and its curve; neither needs Megatron, both need torch."""

import math

import pytest

torch = pytest.importorskip("torch")

from megatron_seams.errors import DataInvalid  # noqa: E402 - after the check for torch
from megatron_seams.runtime.smoke.bound import CHANCE, draw_independent  # noqa: E402
from megatron_seams.runtime.smoke.curve import plot  # noqa: E402
from megatron_seams.runtime.smoke.text import (  # noqa: E402
    draw_windows,
    read_text,
    spread_windows,
    unigram_entropy,
)


def test_the_standard_library_is_a_megabyte_of_text_and_the_same_each_time():
    text, again = (read_text(None, sequence=128) for _ in range(2))
    assert torch.equal(text.training, again.training)
    size = text.training.numel() + text.held_back.numel()
    assert 1_000_000 < size < 3_000_000
    assert pytest.approx(text.held_back.numel() / size, abs=1e-3) == 0.1


def test_the_held_back_part_is_the_end_of_the_file(tmp_path):
    file = tmp_path / "text"
    file.write_bytes(bytes(range(100)))
    text = read_text(file, sequence=8)
    assert text.training.tolist() == list(range(90))
    assert text.held_back.tolist() == list(range(90, 100))


@pytest.mark.parametrize("content", [b"", b"x" * 50])
def test_a_text_without_room_for_a_held_back_window_is_refused(tmp_path, content):
    file = tmp_path / "text"
    file.write_bytes(content)
    with pytest.raises(DataInvalid, match="need 90"):
        read_text(file, sequence=8)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataInvalid, match="no-such-file"):
        read_text(tmp_path / "no-such-file", sequence=8)


def test_windows_are_pieces_of_the_text_and_follow_from_the_seed():
    tokens = torch.arange(20, dtype=torch.uint8)

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return draw_windows(tokens, batch=200, length=5, generator=generator)

    windows = drawn(1)
    assert torch.equal(windows, drawn(1))
    assert not torch.equal(windows, drawn(2))
    assert torch.equal(windows, windows[:, :1] + torch.arange(5))
    # Every place is drawn, the first and the last too.
    assert set(windows[:, 0].tolist()) == set(range(16))


def test_spread_windows_do_not_overlap():
    tokens = torch.arange(100, dtype=torch.uint8)
    windows = spread_windows(tokens, count=7, length=10)
    assert windows.shape == (7, 10)
    assert len(set(windows.flatten().tolist())) == 70
    assert spread_windows(tokens, count=50, length=10).shape == (10, 10)


def test_unigram_entropy_is_that_of_the_frequencies():
    even = torch.tensor([0, 1, 2, 3], dtype=torch.uint8)
    assert unigram_entropy(even) == pytest.approx(math.log(4))
    assert unigram_entropy(torch.zeros(9, dtype=torch.uint8)) == 0.0


def test_the_bound_is_the_surprise_of_who_knows_the_frequencies_less_the_margin():
    text = torch.tensor([0] * 5 + [1] * 3 + [7] * 2, dtype=torch.uint8)
    drawn = draw_independent(text, count=64, length=33, generator=torch.Generator().manual_seed(3))
    assert drawn.tokens.shape == (64, 33)
    assert set(drawn.tokens.unique().tolist()) == {0, 1, 7}
    logs = torch.tensor([math.log(0.5), math.log(0.3), *[0.0] * 5, math.log(0.2)]).double()
    predicted = drawn.tokens[:, 1:]
    best = -float(logs[predicted].mean())
    assert best == pytest.approx(unigram_entropy(text), abs=0.05)
    assert drawn.bound == pytest.approx(best + math.log(CHANCE) / predicted.numel())
    # The past is of no use: the best guess from the byte before, made with hindsight, is above it.
    pairs = torch.zeros(8, 8).double()
    pairs.index_put_(
        (drawn.tokens[:, :-1].flatten(), predicted.flatten()),
        torch.ones(1).double(),
        accumulate=True,
    )
    given = pairs / pairs.sum(1, keepdim=True).clamp(min=1)
    hindsight = -float((pairs * given.clamp(min=1e-9).log()).sum() / pairs.sum())
    assert drawn.bound < hindsight < best


def test_of_a_text_of_one_byte_everything_can_be_known():
    same = torch.full((9,), 65, dtype=torch.uint8)
    assert draw_independent(same, count=2, length=5, generator=torch.Generator()).bound == 0.0


def test_a_curve_has_its_scale_and_its_shape():
    lines = plot([3.0, 2.0, 1.0], height=3, width=60).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("  3.000 |█")
    assert lines[-1].startswith("  1.000 |██▁")
    assert plot([1.5], height=2).count("\n") == 1
    assert len(plot([float(value) for value in range(1000)], width=40).splitlines()[0]) == 49


def test_a_curve_that_diverges_is_drawn_as_far_as_it_goes():
    lines = plot([2.0, 1.0, float("inf"), float("nan")], height=2).splitlines()
    assert lines == ["  2.000 |█   ", "  1.000 |█▁  "]
    assert plot([float("nan")], height=2).splitlines() == ["    nan | ", "    nan | "]
