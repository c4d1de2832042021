"""The layout of a mixer over ranks: the heads and the channels of each."""

import attrs
from attrs import field, validators

from megatron_seams_m2rnn.ops.heads import HeadCounts


@attrs.frozen(kw_only=True)
class Layout:
    """A mixer's heads, spread over tensor- and context-parallel ranks.

    The state's heads are cut into one block of consecutive heads for each tensor-parallel rank, and
    that again for each context-parallel rank. An input of which every rank can have whole heads of
    its own is cut the same way. One with fewer heads is *shared*: every rank reads the one head
    that serves all of its block. The channels of a shared q, k or v are still cut, so that no rank
    projects and convolves what another one does, and gathered before the recurrence.

    Attributes:
        heads: The heads of the whole mixer.
        K: Rows of a head's state.
        V: Columns of a head's state.
        tp: Tensor-parallel size.
        cp: Context-parallel size.

    Raises:
        ValueError: Heads or channels that do not divide over the ranks.
    """

    heads: HeadCounts
    K: int
    V: int
    tp: int = field(default=1, validator=validators.ge(1))
    cp: int = field(default=1, validator=validators.ge(1))

    def __attrs_post_init__(self) -> None:
        """Check that heads and channels divide evenly."""
        if self.heads.state % self.ranks:
            self._fail("the state", self.heads.state, "is no multiple of them")
        for name, count in attrs.asdict(self.heads).items():
            if count % self.ranks == 0:
                continue
            if self.ranks % count:
                self._fail(name, count, "is neither a multiple nor a divisor of them")
            if name in self.channels and self.channels[name] % self.ranks:
                self._fail(name, count, f"has {self.channels[name]} channels to cut")

    def _fail(self, name: str, count: int, why: str) -> None:
        over = f"{self.ranks} ranks (tensor-parallel {self.tp}, context-parallel {self.cp})"
        message = f"{name}, with {count} heads, does not divide over {over}: it {why}"
        raise ValueError(message)

    @property
    def ranks(self) -> int:
        """The number of ranks that share one mixer."""
        return self.tp * self.cp

    @property
    def channels(self) -> dict[str, int]:
        """The input projection's outputs, in order: each part's name and its width in all."""
        return {
            "q": self.heads.q * self.K,
            "k": self.heads.k * self.K,
            "v": self.heads.v * self.V,
            "f": self.heads.f,
            "g": self.heads.state * self.V,
        }

    @property
    def local(self) -> HeadCounts:
        """The heads that one rank's recurrence reads."""
        counts = attrs.asdict(self.heads)
        return HeadCounts(**{name: max(1, count // self.ranks) for name, count in counts.items()})

    def shared(self, name: str) -> bool:
        """Whether several ranks read the same head of an input (``q`` … ``f``)."""
        return getattr(self.heads, name) % self.ranks != 0  # type: ignore[no-any-return]

    def first(self, name: str, tp_rank: int, cp_rank: int) -> int:
        """The first head of an input that a rank reads, counted over the whole mixer."""
        count: int = getattr(self.heads, name)
        return (tp_rank * self.cp + cp_rank) * count // self.ranks
