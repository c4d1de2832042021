"""One native slot, several kinds of layer: the class that picks by layer number.

Upstream builds every layer of one symbol from one slot of its submodules. Where seams build some of
these layers, the slot gets a spec of :class:`Dispatcher`, whose ``__new__`` returns the chosen
layer itself, so that module tree and checkpoint keys contain no wrapper. It is a class, since
``build_module`` returns plain functions without calling them.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import attrs
from megatron.core.transformer.spec_utils import ModuleSpec, build_module, get_module
from torch import nn

from megatron_seams.errors import BuildDiffers
from megatron_seams.runtime import compat
from megatron_seams.runtime.model.refused import KNOWN_STACK, StackRefused


@attrs.frozen(kw_only=True)
class Choice:
    """Which spec builds which layer of one slot.

    Attributes:
        slot: The field of upstream's submodules.
        native: Upstream's own spec for the slot; None where the backend builds none.
        seams: Global layer number -> the seam's spec for that layer.
        built: Global layer number -> the layer that was built for it, as the stack's constructor
            goes; what then stands in the stack is compared with it.
    """

    slot: str
    native: Any
    seams: Mapping[int, ModuleSpec]
    built: dict[int, nn.Module] = attrs.field(factory=dict)

    def of(self, layer_number: int) -> Any:
        """The spec of one layer.

        Raises:
            StackRefused: Around a :class:`BuildDiffers` where the layer is planned for no seam in
                this slot and the backend builds no native layer of it.
        """
        spec = self.seams.get(layer_number, self.native)
        if spec is None:
            differs = BuildDiffers(
                asked=f"seams' layers {', '.join(map(str, self.seams))} in slot {self.slot}",
                found=f"upstream's stack asks the slot for layer {layer_number}",
                next=KNOWN_STACK,
                positions=(layer_number,),
            )
            raise StackRefused.of(differs) from differs
        return spec

    def __deepcopy__(self, memo: dict[int, Any]) -> "Choice":
        """Itself: upstream copies submodules, and a seam's spec may have process groups in it."""
        return self


class Dispatcher:
    """Builds the layer that a :class:`Choice` names for ``layer_number``, and never an instance."""

    def __new__(cls, *, choice: Choice, layer_number: int, **keywords: Any) -> Any:
        """Build the layer.

        Args:
            choice: From the spec's params.
            layer_number: 1-based and global: upstream's stack counts over all pipeline stages.
            **keywords: The keywords that upstream's loop passes to the slot.
        """
        spec = choice.of(layer_number)
        if layer_number in choice.seams:
            keywords = accepted(spec, keywords)
        choice.built[layer_number] = build_module(spec, layer_number=layer_number, **keywords)
        return choice.built[layer_number]


def dispatching_spec(choice: Choice) -> ModuleSpec:
    """The spec to put into ``choice.slot``."""
    return ModuleSpec(module=Dispatcher, params={"choice": choice})


def accepted(spec: ModuleSpec | type, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that the spec's class takes, of those that the slot passes.

    Slots differ in what they pass, and a seam's class is written for none of them in particular. A
    class that would add its stage's offset to ``layer_number`` gets the keyword that prevents it.
    """
    target = get_module(spec)
    taken = {
        name: value
        for name, value in keywords.items()
        if name in compat.ALWAYS_PASSED or takes(target, name)
    }
    if takes(target, compat.GLOBAL_NUMBERS):
        taken[compat.GLOBAL_NUMBERS] = False
    return taken


def takes(target: type, keyword: str) -> bool:
    """Whether a constructor of ``target`` names ``keyword``.

    A constructor with ``**kwargs`` passes them on to its base class, which names what it takes: so
    the bases are searched in their order, up to the first without ``**kwargs``.
    """
    for base in target.__mro__:
        constructor = base.__dict__.get("__init__")
        if constructor is None:
            continue
        parameters = inspect.signature(constructor).parameters
        if keyword in parameters:
            return True
        if all(part.kind is not part.VAR_KEYWORD for part in parameters.values()):
            return False
    return False
