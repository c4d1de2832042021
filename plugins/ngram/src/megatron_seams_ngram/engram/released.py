"""Weights in the released layout: the parameters of one layer's memory, by their released names.

The layout is the official demonstration's, which the models that ship the memory follow:

| released | here |
| --- | --- |
| ``multi_head_embedding.embedding.weight`` [rows, width] | ``tables.weight``, this rank's rows |
| ``value_proj.weight``, ``.bias`` | ``value``, ``value_bias`` |
| ``key_projs.I.weight``, ``.bias`` | rows of stream I of ``key``, ``key_bias`` |
| ``norm1.I.weight`` | elements of stream I of ``key_norm.weight`` |
| ``norm2.I.weight`` | elements of stream I of ``hidden_norm.weight`` |
| ``short_conv.norms.I.weight`` | elements of stream I of ``value_norm.weight`` |
| ``short_conv.conv.weight`` [streams * h, 1, taps] | ``taps``, the last tap first |
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from megatron_seams.errors import FeatureInvalid
from megatron_seams_ngram.engram.module import Engram
from megatron_seams_ngram.host.tables import HostNgramTables

_TABLE: Final = "multi_head_embedding.embedding.weight"
_OFFSETS: Final = "multi_head_embedding.offsets"
_CONVOLUTION: Final = "short_conv.conv.weight"
_SIZES: Final = (
    "give [seams.engram] the released model's sizes, streams and bias, and the weights by their "
    "names without the layer's prefix"
)


def load_released(module: Engram, state: Mapping[str, Tensor]) -> None:
    """Load one layer's weights into its memory, on every tensor-parallel rank its own rows.

    Args:
        module: Built with the released model's sizes, ``hashing = "released"``; its tables on the
            device or on the host.
        state: Released name, without the layer's prefix -> the whole tensor. The tables' offsets
            are compared where they are there.

    Raises:
        FeatureInvalid: A module that hashes otherwise, so that the rows would be of other n-grams;
            a name that is missing, that there is no place for, or of another shape; or other
            offsets. Nothing is loaded then.
    """
    if module.hashing != "released":
        raise _invalid(
            f'the memory hashes by "{module.hashing}": the rows would be of other n-grams',
            'set hashing = "released" in [seams.engram], and what it wants',
        )
    own = _own(module, state)
    tables = module.tables
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name != "tables.weight":
                parameter.copy_(own[name])
        # No parameter where they lie on the host. Those that only fill the table up stay.
        part = state[_TABLE][tables.first_row : tables.first_row + len(tables.weight)]
        tables.weight[: len(part)].copy_(part)
    if isinstance(tables, HostNgramTables):
        tables.host.forget()


def _own(module: Engram, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The module's parameters but for its rows, by its own names, from the released ones."""
    expected = _shapes(module)
    missing = sorted(expected.keys() - state.keys())
    strange = sorted(state.keys() - expected.keys() - {_OFFSETS})
    wrong = [
        f"{name} is {list(state[name].shape)} and not {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if missing or strange or wrong:
        faults = [f"{', '.join(missing)} missing"] if missing else []
        faults += [f"no place for {', '.join(strange)}"] if strange else []
        raise _invalid("; ".join([*faults, *wrong]))
    offsets = state.get(_OFFSETS)
    if offsets is not None and offsets.tolist() != module.tables.offsets.tolist():
        raise _invalid(f"its tables begin at rows {offsets.tolist()[:4]}…, and the recipe's do not")

    def streams(name: str) -> Tensor:
        return torch.cat([state[name.replace("*", str(i))] for i in range(module.streams)])

    own = {
        "key": streams("key_projs.*.weight"),
        "value": state["value_proj.weight"],
        "key_norm.weight": streams("norm1.*.weight"),
        "hidden_norm.weight": streams("norm2.*.weight"),
        "value_norm.weight": streams("short_conv.norms.*.weight"),
        "taps": state[_CONVOLUTION].squeeze(1).flip(1),
    }
    if module.key_bias is not None:
        own |= {"key_bias": streams("key_projs.*.bias"), "value_bias": state["value_proj.bias"]}
    return own


def _shapes(module: Engram) -> dict[str, tuple[int, ...]]:
    """Released name -> shape, for a memory of the module's sizes."""
    hidden, columns = module.value.shape
    rows, width = int(module.tables.primes.sum()), module.tables.weight.shape[1]
    shapes: dict[str, tuple[int, ...]] = {
        _TABLE: (rows, width),
        "value_proj.weight": (hidden, columns),
        _CONVOLUTION: (module.streams * hidden, 1, module.taps.shape[1]),
    }
    for i in range(module.streams):
        shapes[f"key_projs.{i}.weight"] = (hidden, columns)
        for norm in ("norm1", "norm2", "short_conv.norms"):
            shapes[f"{norm}.{i}.weight"] = (hidden,)
    if module.key_bias is not None:
        shapes["value_proj.bias"] = (hidden,)
        shapes |= {f"key_projs.{i}.bias": (hidden,) for i in range(module.streams)}
    return shapes


def _invalid(found: str, advice: str = _SIZES) -> FeatureInvalid:
    return FeatureInvalid(
        asked="the released weights of one layer's memory",
        found=found,
        next=advice,
        subject="engram",
        key="seams.engram",
    )
