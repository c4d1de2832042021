"""The number of heads of each input, and the rule by which heads are shared."""

import attrs
from attrs import field, validators


@attrs.frozen(kw_only=True)
class HeadCounts:
    """The heads of the operator's five inputs.

    The state has as many heads N as the input with the most. A tensor with fewer shares each of its
    own heads among *consecutive* heads of the state: with Nx heads, its head ``n // (N / Nx)``
    serves head n.

    Attributes:
        q: Heads of the query, Nq.
        k: Heads of the key, Nk.
        v: Heads of the value, Nv.
        W: State transition matrices, Nw.
        f: Forget gates, Nf.

    Raises:
        ValueError: A count below 1, or one that does not divide N.
    """

    q: int = field(validator=validators.ge(1))
    k: int = field(validator=validators.ge(1))
    v: int = field(validator=validators.ge(1))
    W: int = field(validator=validators.ge(1))
    f: int = field(validator=validators.ge(1))

    def __attrs_post_init__(self) -> None:
        """Check that every count divides the state's."""
        for name, count in attrs.asdict(self).items():
            if self.state % count:
                message = (
                    f"{name} has {count} heads, which does not divide the {self.state} heads of "
                    f"the state (the largest of {attrs.asdict(self)})"
                )
                raise ValueError(message)

    @property
    def state(self) -> int:
        """Heads of the state and of the output, N."""
        return max(self.q, self.k, self.v, self.W, self.f)
