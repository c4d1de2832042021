"""TileLang's kernels, kept once they are built.

``mamba_ssm`` 2.3.2 names the sizes of a call by variables that it makes anew each time. TileLang
keeps what it has built by those variables, finds nothing under the new ones, and traces the kernel
again on the host: a second for each forward and backward pass
(https://github.com/state-spaces/mamba/issues/953). A kernel does not depend on the variables.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import attrs

#: What builds a kernel in each of the authors' modules with MIMO.
BUILDERS: Final = ("mamba_mimo_fwd", "mamba_mimo_bwd_fwd", "mamba_mimo_bwd_bwd")


@attrs.frozen
class Kept:
    """A builder of kernels that keeps each one by its arguments, variables by their names.

    Attributes:
        build: From sizes, numbers or variables, and settings to a kernel.
        kernels: What it has built.
    """

    build: Callable[..., Any]
    kernels: dict[tuple[Any, ...], Any] = attrs.field(factory=dict, init=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The kernel of these arguments."""
        given = (*args, *(part for pair in sorted(kwargs.items()) for part in pair))
        # A number and a variable of its name are two: the type is part of the key.
        key = tuple((type(each), getattr(each, "name", each)) for each in given)
        if key not in self.kernels:
            self.kernels[key] = self.build(*args, **kwargs)
        return self.kernels[key]


def keep_built(module: ModuleType) -> None:
    """Let a module of the authors' keep the kernels that it builds; twice is once."""
    for name in BUILDERS:
        builder = getattr(module, name, None)
        if builder is not None and not isinstance(builder, Kept):
            setattr(module, name, Kept(builder))
