"""The stack of a receipt, which upstream's trainer builds in the place of its own.

The trainer makes configuration and model from its command line, so two sources describe the same
layers: the receipt says what each layer is, the command line only spells them. Where they disagree
the run stops, since a seam's layer number would then mean another layer.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from megatron_seams.base.files import read_file
from megatron_seams.errors import LaunchInvalid, Refusal, SeamsError
from megatron_seams.planning.environment import read_environment
from megatron_seams.planning.indexer import waiting_ranks
from megatron_seams.planning.lowering import lowered_pattern
from megatron_seams.planning.plan import Plan
from megatron_seams.planning.resolver import resolve
from megatron_seams.records.receipt import read_receipt
from megatron_seams.records.software import MAX_BYTES, software
from megatron_seams.records.verify import verify
from megatron_seams.runtime.agreement.alike import made_alike
from megatron_seams.runtime.backends.backend import choose_backend
from megatron_seams.runtime.model.features import attach_features
from megatron_seams.runtime.model.inspection import mtp_differences
from megatron_seams.runtime.model.prepare import PreparedPlan, prepare
from megatron_seams.runtime.model.refused import StackRefused
from megatron_seams.runtime.model.spelled import spelled
from megatron_seams.runtime.model.stack import SeamHybridStack
from megatron_seams.runtime.trainer.model_arguments import argument_differences
from megatron_seams.runtime.trainer.remember import remember

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig

#: The environment variable that names the receipt of a run.
RECEIPT: Final = "MEGATRON_SEAMS_RECEIPT"


@attrs.frozen(kw_only=True)
class PlannedNorms:
    """The fields that decide which norms a TE-free layer has, as the receipt's recipe sets them.

    The trainer's configuration does not exist yet when the spec is made.
    """

    qk_layernorm: bool = False
    q_lora_rank: int | None = None

    @classmethod
    def of(cls, settings: Any) -> "PlannedNorms":
        """Read the fields from a recipe's ``[megatron]``, or from a configuration."""
        read = settings.get if isinstance(settings, Mapping) else vars(settings).get
        # A recipe that leaves the rank out has upstream's, as the configuration will.
        rank = read("q_lora_rank", MLATransformerConfig.q_lora_rank)
        return cls(qk_layernorm=bool(read("qk_layernorm")), q_lora_rank=rank)


def receipt_stack(variables: Mapping[str, str]) -> ModuleSpec:
    """The spec of the stack for the receipt that ``MEGATRON_SEAMS_RECEIPT`` names.

    Args:
        variables: The process's environment.

    Raises:
        Refusal: With every reason: no receipt is named, this environment does not make its plan,
            a plugin does not load, the machine cannot build a family.
        ReceiptUnreadable: The file is no receipt, or was edited.
        RanksDiffer: Another rank has another receipt or other software, has none, or is silent.
    """
    file, prepared, _ = made_alike(
        "receipt",
        lambda: _prepare(variables.get(RECEIPT)),
        lambda made: {"receipt": made[2], "software": software()},
    )
    return ModuleSpec(
        module=ReceiptStack,
        params={
            "receipt": file,
            "prepared": prepared,
            **prepared.final_norm(),
        },
        submodules=prepared.backend.submodules(PlannedNorms.of(prepared.plan.megatron)),
    )


def _no_receipt() -> LaunchInvalid:
    return LaunchInvalid(
        asked="the receipt that this run must match",
        found=f"{RECEIPT} is not set",
        next=f"write the recipe's receipt to a file, and export {RECEIPT}=FILE on every rank",
        subject=RECEIPT,
    )


def _prepare(file: str | None) -> tuple[str, PreparedPlan, dict[str, Any]]:
    """The receipt's file, its plan as this environment makes it, and what the file holds."""
    if not file:
        raise Refusal([_no_receipt()])
    receipt = Path(file)
    environment = read_environment()
    body, recipe = read_receipt(receipt)
    differences = verify(receipt, environment)
    if differences:
        raise Refusal(differences)
    plan = resolve(recipe, environment)
    if waiting := list(waiting_ranks(plan)):  # also where the command line is not `registry args`'
        raise Refusal(waiting)
    remember(read_file(receipt, MAX_BYTES).decode("utf-8"))
    return file, prepare(plan, choose_backend()), body


class ReceiptStack(SeamHybridStack):
    """Upstream's stack with a receipt's layers, in a model that upstream's trainer builds.

    Args:
        config: The trainer's configuration.
        *args: As upstream's.
        receipt: The receipt's file, for messages.
        prepared: The receipt's plan, which this environment still makes.
        layer_type_list: The symbols of this stage's layers, from the trainer's command line.
        pp_layer_offset: The number of layers on earlier stages.
        **keywords: As :class:`SeamHybridStack`.

    Raises:
        StackRefused: Around a :class:`LaunchInvalid` where the command line spells other layers
            than the receipt has; around a :class:`RanksDiffer` where another rank's does.
    """

    #: How many were begun in this process; a virtual pipeline has one for each model chunk.
    _begun = 0

    def __init__(
        self,
        config: "TransformerConfig",
        *args: Any,
        receipt: str,
        prepared: PreparedPlan,
        layer_type_list: list[str],
        pp_layer_offset: int = 0,
        **keywords: Any,
    ) -> None:
        ReceiptStack._begun += 1
        faults = _differences(receipt, prepared, config, layer_type_list, pp_layer_offset)
        try:
            made_alike("arguments", lambda: _refuse(faults), lambda _: {"stack": self._begun})
        except (SeamsError, Refusal) as refusal:
            raise StackRefused.of(refusal) from refusal
        super().__init__(
            config,
            *args,
            prepared=prepared,
            layer_type_list=layer_type_list,
            pp_layer_offset=pp_layer_offset,
            **keywords,
        )
        _Completion(self, prepared, receipt)


def _refuse(faults: list[LaunchInvalid]) -> None:
    if faults:
        raise Refusal(faults)


def _differences(
    receipt: str,
    prepared: PreparedPlan,
    config: "TransformerConfig",
    symbols: list[str],
    offset: int,
) -> list[LaunchInvalid]:
    """One fault for each way in which the command line contradicts the receipt."""
    plan = prepared.plan
    planned = [layer.provider.symbol for layer in plan.layers]
    slices = list(plan.pipeline.slices())
    starts = [part.start for part in slices]
    # Stages without layers begin where the next one does.
    sizes = {part.stop - part.start for part in slices if part.start == offset}
    compared: dict[str, tuple[object, object]] = {
        "the layers of this stage, --hybrid-layer-pattern": (
            "".join(planned[offset : offset + len(symbols)]),
            "".join(symbols),
        ),
        "the number of layers": (len(planned), config.num_layers),
        "the number of MTP depths": (plan.pattern.mtp_depths, config.mtp_num_layers or 0),
        "the number of pipeline ranks": (
            plan.pipeline.ranks,
            config.pipeline_model_parallel_size,
        ),
        "the layers before this stage": (offset if offset in starts else starts, offset),
        "the number of layers on this stage": (
            len(symbols) if len(symbols) in sizes else sorted(sizes),
            len(symbols),
        ),
        **_settings(plan, config),
    }
    if prepared.backend.name == "local":
        norms = PlannedNorms.of(plan.megatron), PlannedNorms.of(config)
        compared["the norms of queries and keys"] = norms
    return [
        _contradicted(receipt, plan, what, wanted, found)
        for what, (wanted, found) in compared.items()
        if wanted != found
    ]


def _contradicted(
    receipt: str, plan: Plan, what: str, wanted: object, found: object
) -> LaunchInvalid:
    return LaunchInvalid(
        asked=f"{what}: {wanted}, as receipt {receipt} has it",
        found=f"this run's arguments say {found}",
        next="start the run with the native arguments of the receipt's recipe (its pattern is "
        f"{lowered_pattern(plan)!r})",
        subject=receipt,
    )


def _settings(plan: Plan, config: "TransformerConfig") -> dict[str, tuple[object, object]]:
    """Each configuration field that the receipt's recipe sets -> its value there, and the run's."""
    fields = {field.name: field.type for field in dataclasses.fields(config)}
    return {
        f"[megatron] {key}": (spelled(key, value, fields[key]), getattr(config, key))
        for key, value in plan.megatron.items()
        if key in fields
    }


class _Completion:
    """The checks left for a model as its constructor goes on after the stack.

    A trainer that is started with ``--spec`` offers no other moment between the model's parts and
    the wrappers for mixed precision and DDP.
    """

    def __init__(self, stack: nn.Module, prepared: PreparedPlan, receipt: str) -> None:
        self._stack: nn.Module | None = stack
        self._prepared = prepared
        self._receipt = receipt
        self._handle = register_module_module_registration_hook(self._registered)

    def _done(self) -> None:
        self._stack = None
        hooks = self._handle.hooks_dict_ref()
        # torch is going through its hooks: only the last may be taken out, another stays, idle.
        if hooks and next(reversed(hooks)) == self._handle.id:
            self._handle.remove()

    def _registered(self, parent: Any, name: str, child: nn.Module | None) -> None:
        """Compare a model's arguments and attach its features once it has its decoder.

        Its MTP depths are compared at its end.

        Raises:
            Refusal: Arguments or depths are not the plan's, or a feature cannot be attached.
        """
        stack, prepared = self._stack, self._prepared
        if stack is None:
            return
        if child is stack:
            given = tuple(argument_differences(parent, prepared.plan))
            if given or not stack.post_process:
                self._done()
            if given:
                raise Refusal(
                    [
                        _contradicted(
                            self._receipt, prepared.plan, f"the model's {name}", wanted, found
                        )
                        for name, wanted, found in given
                    ]
                )
            if prepared.plan.features:
                attach_features(parent, prepared, vocab_size=parent.vocab_size, decoder=child)
        elif name == "output_layer" and getattr(parent, "decoder", None) is stack:
            self._done()
            submodules = prepared.backend.submodules(parent.config)
            if faults := tuple(mtp_differences(parent, prepared.plan, submodules)):
                raise Refusal(faults)
