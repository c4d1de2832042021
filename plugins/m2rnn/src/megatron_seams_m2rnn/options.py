"""The options of the seam: a recipe's ``[seams.m2rnn]``."""

from typing import Literal, get_args

import attrs
from attrs import field, validators

from megatron_seams_m2rnn.layer.layout import Layout
from megatron_seams_m2rnn.ops.heads import HeadCounts

#: The implementations of the recurrence (:mod:`megatron_seams_m2rnn.ops.dispatch`).
Backend = Literal["reference", "torch", "cpu", "triton", "cuda"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

_positive = validators.ge(1)
_optional_count = validators.optional(_positive)


@attrs.frozen(kw_only=True)
class Options:
    """The mixer's sizes. A size that is left out is the paper's (arXiv:2603.14360).

    The defaults share one query head and one key head among all heads of the state and give every
    head its own value, transition matrix and gate.

    Attributes:
        K: Rows of a head's state, the size of a query and a key head.
        V: Columns of a head's state, the size of a value head.
        heads: Heads of the state, N; left out, :func:`default_heads` of the hidden size.
        q_heads: Query heads, Nq.
        k_heads: Key heads, Nk.
        v_heads: Value heads, Nv; left out, N.
        w_heads: State transition matrices, Nw; left out, N.
        f_heads: Forget gates, Nf; left out, N.
        conv_size: Taps of the causal depthwise convolution over q, k and v, in tokens.
        state_gradient_clip: The bound of every element of the gradient that one time step hands to
            the one before it; ``inf`` clips nothing.
        backend: What computes the recurrence, one of :data:`BACKENDS`; left out, the device's own.

    Raises:
        ValueError: A size below 1, a clip that is not above 0, or head counts that do not divide N.
    """

    K: int = field(default=64, validator=_positive)
    V: int = field(default=16, validator=_positive)
    heads: int | None = field(default=None, validator=_optional_count)
    q_heads: int = field(default=1, validator=_positive)
    k_heads: int = field(default=1, validator=_positive)
    v_heads: int | None = field(default=None, validator=_optional_count)
    w_heads: int | None = field(default=None, validator=_optional_count)
    f_heads: int | None = field(default=None, validator=_optional_count)
    conv_size: int = field(default=4, validator=_positive)
    # gt refuses nan too: a comparison with nan is false.
    state_gradient_clip: float = field(default=1.0, validator=validators.gt(0.0))
    backend: Backend | None = field(
        default=None, validator=validators.optional(validators.in_(BACKENDS))
    )

    def __attrs_post_init__(self) -> None:
        """Check head counts that are spelled out, before any model is known."""
        if self.heads is not None:
            self._counts(self.heads)

    def head_counts(self, hidden_size: int) -> HeadCounts:
        """Fill in the head counts that the recipe leaves out.

        Args:
            hidden_size: The model's width.

        Raises:
            ValueError: Head counts that do not divide N, or no input that has N heads.
        """
        return self._counts(self.heads or default_heads(hidden_size))

    def layout(self, hidden_size: int, *, tp: int = 1, cp: int = 1) -> Layout:
        """Spread the mixer of a model over ranks.

        Args:
            hidden_size: The model's width.
            tp: Tensor-parallel size.
            cp: Context-parallel size.

        Raises:
            ValueError: Head counts that do not divide N, or that do not divide over the ranks.
        """
        return Layout(heads=self.head_counts(hidden_size), K=self.K, V=self.V, tp=tp, cp=cp)

    def _counts(self, heads: int) -> HeadCounts:
        counts = HeadCounts(
            q=self.q_heads,
            k=self.k_heads,
            v=self.v_heads or heads,
            W=self.w_heads or heads,
            f=self.f_heads or heads,
        )
        if counts.state != heads:
            message = (
                f"the state is to have {heads} heads, but the largest of {attrs.asdict(counts)} "
                f"is {counts.state}"
            )
            raise ValueError(message)
        return counts


def default_heads(hidden_size: int) -> int:
    """Scale the paper's number of heads to another width.

    The paper gives two: 84 heads at hidden size 1024 and 132 at 1536 (K = 64, V = 16). Above 1024
    this follows the line through both, below it the first one's share of the width; it rounds to a
    multiple of 4, so that the heads still divide over a few ranks.

    Args:
        hidden_size: The model's width.

    Returns:
        N, at least 4: 84 at 1024, 132 at 1536, 372 at 4096.
    """
    if hidden_size >= 1024:
        heads = 84 + (hidden_size - 1024) * (132 - 84) / (1536 - 1024)
    else:
        heads = 84 * hidden_size / 1024
    return max(4, 4 * round(heads / 4))
