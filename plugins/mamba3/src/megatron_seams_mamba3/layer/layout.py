"""The layout of a mixer over ranks: the heads, groups and channels of each."""

import attrs
from attrs import field, validators

_positive = validators.ge(1)


@attrs.frozen(kw_only=True)
class Layout:
    """A mixer's heads, spread over tensor-parallel ranks.

    Each rank has a block of consecutive heads, and the groups of B and C that serve them. Where
    there are fewer groups than ranks, several ranks read one group: each projects a slice of its
    channels, and they are gathered. The angles, which all heads read, are cut and gathered too.

    Attributes:
        heads: H, of the whole mixer.
        P: Channels of a head.
        G: Groups of B and C.
        R: Ranks of MIMO; 1 without it.
        N: Channels of a head's state.
        A: Angles.
        tp: Tensor-parallel size.

    Raises:
        ValueError: Heads, groups or channels that do not divide.
    """

    heads: int = field(validator=_positive)
    P: int = field(validator=_positive)
    G: int = field(validator=_positive)
    R: int = field(validator=_positive)
    N: int = field(validator=_positive)
    A: int = field(validator=_positive)
    tp: int = field(default=1, validator=_positive)

    def __attrs_post_init__(self) -> None:
        """Check that everything divides."""
        if self.heads % self.G:
            message = f"{self.heads} heads do not divide over {self.G} groups"
            raise ValueError(message)
        over = f"over tensor-parallel {self.tp}"
        if self.heads % self.tp:
            message = f"{self.heads} heads do not divide {over}"
            raise ValueError(message)
        if self.G % self.tp and self.tp % self.G:
            message = f"{self.G} groups are neither a multiple nor a divisor of the ranks {over}"
            raise ValueError(message)
        if self.A % self.tp or (self.G * self.N) % self.tp:
            message = f"{self.A} angles and {self.G * self.N} channels of B do not divide {over}"
            raise ValueError(message)

    @property
    def channels(self) -> dict[str, int]:
        """The input projection's outputs, in order: each part's name and its width in all.

        The authors' order, in which the ranks of B come one after the other; each is a part of its
        own here, since each is cut by groups.
        """
        inner, group = self.heads * self.P, self.G * self.N
        return {
            "z": inner,
            "x": inner,
            **{f"B{rank}": group for rank in range(self.R)},
            **{f"C{rank}": group for rank in range(self.R)},
            "dt": self.heads,
            "A": self.heads,
            "trap": self.heads,
            "angle": self.A,
        }

    @property
    def widths(self) -> dict[str, int]:
        """Each part's width on one rank."""
        return {name: width // self.tp for name, width in self.channels.items()}

    @property
    def local_heads(self) -> int:
        """The heads of one rank."""
        return self.heads // self.tp

    @property
    def local_groups(self) -> int:
        """The groups that one rank's heads read."""
        return max(1, self.G // self.tp)

    @property
    def shared(self) -> bool:
        """Whether several ranks read one group."""
        return self.tp > self.G

    def first_group(self, rank: int) -> int:
        """The first group that a rank's heads read."""
        return rank * self.G // self.tp
