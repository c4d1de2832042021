"""The options of the seam: a recipe's ``[seams.mamba3]``."""

from typing import Literal, get_args

import attrs
from attrs import field, validators

from megatron_seams_mamba3.layer.layout import Layout

#: The implementations of the recurrence (:mod:`megatron_seams_mamba3.ops.dispatch`).
Backend = Literal["reference", "torch", "cuda"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
#: The functions that make A positive.
Decay = Literal["softplus", "heavy-tail"]

_positive = validators.ge(1)


def _even(_: object, __: object, value: int) -> None:
    if value % 2:
        message = f"state-size is even, since its channels turn in pairs; found {value}"
        raise ValueError(message)


@attrs.frozen(kw_only=True)
class Options:
    """The mixer's sizes. The defaults are those of the authors' module, ``mamba_ssm``'s ``Mamba3``.

    Attributes:
        state_size: Channels of a head's state, N.
        head_dim: Channels of a head, P.
        expand: Channels of all heads over the model's width.
        groups: Groups of heads that share B and C, G.
        mimo_rank: Ranks of MIMO, R; left out, SISO. One rank is MIMO too, with its projections.
        rope_fraction: Share of the state's channels that turn, 0.5 or 1.0.
        decay: The function that makes A positive. A checkpoint has one of them: ``softplus`` up to
            ``mamba_ssm`` 2.3.2, ``heavy-tail`` (1 + x above 0, 1 / (1 - x) below) in its source
            since June 2026.
        decay_floor: Least size of A.
        dt_min: Smallest step Δ of a head at its beginning; drawn log-uniformly up to dt_max.
        dt_max: Largest step of a head at its beginning.
        out_norm: Whether each head's output is normalised before its gate (``is_outproj_norm``).
        chunk_size: Steps that the fast backends take at once; left out, the authors' for the ranks.
        backend: What computes the recurrence, one of :data:`BACKENDS`; left out, the device's own.

    Raises:
        ValueError: A size below 1, an odd state, another share of channels, or steps that fall.
    """

    state_size: int = field(default=128, validator=[_positive, _even])
    head_dim: int = field(default=64, validator=_positive)
    expand: int = field(default=2, validator=_positive)
    groups: int = field(default=1, validator=_positive)
    mimo_rank: int | None = field(default=None, validator=validators.optional(_positive))
    rope_fraction: float = field(default=0.5, validator=validators.in_((0.5, 1.0)))
    decay: Decay = field(default="softplus", validator=validators.in_(get_args(Decay)))
    decay_floor: float = field(default=1e-4, validator=validators.gt(0.0))
    dt_min: float = field(default=1e-3, validator=validators.gt(0.0))
    dt_max: float = field(default=0.1, validator=validators.gt(0.0))
    out_norm: bool = False
    chunk_size: int | None = field(default=None, validator=validators.optional(_positive))
    backend: Backend | None = field(
        default=None, validator=validators.optional(validators.in_(BACKENDS))
    )

    def __attrs_post_init__(self) -> None:
        """Check the steps against one another."""
        if self.dt_max < self.dt_min:
            message = f"dt-max is not below dt-min; found {self.dt_max} and {self.dt_min}"
            raise ValueError(message)

    def layout(self, hidden_size: int, *, tp: int = 1) -> Layout:
        """Spread the mixer of a model over ranks.

        Args:
            hidden_size: The model's width.
            tp: Tensor-parallel size.

        Raises:
            ValueError: Sizes that do not divide.
        """
        inner = self.expand * hidden_size
        if inner % self.head_dim:
            message = f"head-dim {self.head_dim} does not divide {inner} (expand x hidden_size)"
            raise ValueError(message)
        return Layout(
            heads=inner // self.head_dim,
            P=self.head_dim,
            G=self.groups,
            R=self.mimo_rank or 1,
            N=self.state_size,
            A=int(self.state_size * self.rope_fraction) // 2,
            tp=tp,
        )
