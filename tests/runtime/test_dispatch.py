"""The dispatcher: one slot, the right layer for each number, with the keywords that it takes."""

import copy

import pytest
from torch import nn

pytestmark = [pytest.mark.megatron, pytest.mark.release]


class Named(nn.Module):
    """Takes what it names."""

    def __init__(self, config, layer_number, pg_collection):
        super().__init__()
        del config, pg_collection
        self.layer_number = layer_number


class Offsetting(nn.Module):
    """Adds its stage's offset to its number unless told not to, as upstream's TransformerLayer."""

    def __init__(self, config, layer_number, pg_collection, add_layer_offset=True, name=None):
        super().__init__()
        del config, pg_collection
        self.layer_number = layer_number + (100 if add_layer_offset else 0)
        self.name = name


class HandsOn(Offsetting):
    """Hands its keywords on to a base that names them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


#: What upstream's loop passes to the mamba slot and to the attention slot, from 0.18 on.
MAMBA = {"config": 0, "layer_number": 7, "pg_collection": 0, "pp_layer_offset": 4, "name": "n"}
ATTENTION = MAMBA | {"is_mtp_layer": False, "add_layer_offset": False}


def build(target, keywords):
    from megatron.core.transformer.spec_utils import ModuleSpec, build_module

    from megatron_seams.runtime.model.dispatch import Choice, dispatching_spec

    choice = Choice(slot="any", native=None, seams={7: ModuleSpec(module=target)})
    return build_module(dispatching_spec(choice), **keywords)


@pytest.mark.parametrize("slot", [MAMBA, ATTENTION])
def test_a_layer_on_a_later_stage_keeps_its_global_number(slot):
    for target in (Named, Offsetting, HandsOn):
        layer = build(target, slot)
        assert type(layer) is target
        assert layer.layer_number == 7


def test_keywords_that_only_a_base_class_names_are_handed_on():
    assert build(HandsOn, ATTENTION).name == "n"


def test_a_number_that_is_no_seams_is_built_natively_with_every_keyword():
    from megatron.core.transformer.spec_utils import ModuleSpec, build_module

    from megatron_seams.runtime.model.dispatch import Choice, dispatching_spec

    got = {}

    class Native(nn.Module):
        def __init__(self, **kwargs):
            super().__init__()
            got.update(kwargs)

    spec = dispatching_spec(Choice(slot="any", native=Native, seams={3: ModuleSpec(module=Named)}))
    assert type(build_module(spec, **ATTENTION)) is Native
    assert got == ATTENTION


def test_a_native_layer_that_the_backend_lacks_is_an_error_and_not_an_empty_layer():
    from megatron.core.transformer.spec_utils import ModuleSpec, build_module

    from megatron_seams.errors import BuildDiffers
    from megatron_seams.runtime.compat import HybridStackSubmodules
    from megatron_seams.runtime.model.refused import StackRefused, refusal_behind
    from megatron_seams.runtime.model.stack import with_seams

    specs = {"mamba_layer": {3: ModuleSpec(module=Named)}}
    slots = with_seams(HybridStackSubmodules(), specs)
    with pytest.raises(StackRefused, match="SEAM-B10") as raised:
        build_module(slots.mamba_layer, **MAMBA)
    refusal = refusal_behind(raised.value)
    assert isinstance(refusal, BuildDiffers)
    assert "asks the slot for layer 7" in str(refusal)
    assert refusal.positions == (7,)


def test_a_dispatching_spec_survives_upstreams_deep_copy_of_submodules():
    from megatron.core.transformer.spec_utils import ModuleSpec

    from megatron_seams.runtime.model.dispatch import Choice, dispatching_spec

    class ProcessGroup:
        def __deepcopy__(self, memo):
            raise TypeError("process groups cannot be copied")

    spec = ModuleSpec(module=Named, params={"group": ProcessGroup()})
    copied = copy.deepcopy(dispatching_spec(Choice(slot="any", native=None, seams={1: spec})))
    assert copied.params["choice"].of(1) is spec
