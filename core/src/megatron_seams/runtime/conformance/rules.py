"""The rules of the kit: the name of each, its sentence, and what to do where it is broken."""

from typing import NoReturn

import attrs


class RuleBroken(AssertionError):
    """A seam breaks a rule of the kit."""


@attrs.frozen(kw_only=True)
class Rule:
    """One rule.

    Attributes:
        name: Its name in messages and in the documentation.
        says: The rule in one sentence.
        next: The next step of the seam's author where the rule is broken.
    """

    name: str
    says: str
    next: str

    def broken(self, found: str) -> NoReturn:
        """Fail the test.

        Raises:
            RuleBroken: With the rule, what was found and what to do.
        """
        __tracebackhide__ = True
        message = f"rule {self.name!r}: {self.says}\n  found: {found}\n  next: {self.next}"
        raise RuleBroken(message)


FOUND = Rule(
    name="found",
    says="the seam is installed, its manifest is valid and it may be chosen here",
    next="correct what is named, reinstall the plugin, and look at `registry list --owners`",
)
LIGHT_IMPORT = Rule(
    name="light import",
    says="importing the seam's package imports neither torch nor Megatron",
    next="move such imports from __init__.py into plugin.py, or further behind it",
)
HOOKS = Rule(
    name="hooks",
    says="plugin.py implements the hook that the manifest declares and no other, and takes the "
    "options that it is given",
    next="make plugin.py and seam.toml say the same (`registry docs write-a-seam`, The plugin); "
    "give options that the seam needs with --seam-options, or as `options` of the test class",
)
BUILDS = Rule(
    name="builds",
    says="a small model with the seam's layers builds on the local backend",
    next="correct the constructor; where it only needs other sizes, give them in [megatron] of "
    "--seam-options, or as `megatron` of the test class",
)
FORWARD = Rule(
    name="forward",
    says="a mixer maps [s, b, h] to ([s, b, h], bias [h] or None), a layer [s, b, h] to "
    "[s, b, h], a feature at the embedding [b, s] to [b, s, h], in the dtype that they get",
    next="return what `registry docs write-a-seam` says",
)
GRADIENTS = Rule(
    name="gradients",
    says="every parameter gets a gradient, finite and not all zero",
    next="look for a detached tensor, a parameter that nothing uses, or a division by zero",
)
DETERMINISTIC = Rule(
    name="deterministic",
    says="the same weights and tokens give the same bits twice, forward and backward",
    next="take randomness out of the forward pass (dropout is 0 here), and state that it keeps",
)
CAUSAL = Rule(
    name="causal",
    says="the tokens from t on change nothing before t, to the bit, for every t",
    next="look for a convolution that is padded on both sides, a shift the wrong way, a mask that "
    "is missing or one off, and sums, means or maxima over the sequence",
)
ROWS_APART = Rule(
    name="rows apart",
    says="the tokens of one row of the batch change nothing in another, to the bit",
    next="look for [s, b, h] taken for [b, s, h], a view or reshape that mixes them, statistics "
    "over the batch, and state that all rows share",
)
KEYWORDS = Rule(
    name="native keywords",
    says="the layer is built with exactly the keywords that each supported Megatron passes",
    next="take the keyword in the constructor, or correct `needs` and `takes` of [carrier]",
)
NUMBERS = Rule(
    name="layer numbers",
    says="a layer on a later pipeline stage keeps the global layer number that it is given",
    next="use layer_number as it is passed (global, from 1); pp_layer_offset is for keys that "
    "count within a stage",
)
NO_WRAPPER = Rule(
    name="no wrapper",
    says="the state dict has the seam's own names, without a wrapper's in front",
    next="return the module itself from the hook; pick a variant in plugin.py, or in __new__",
)
ROUND_TRIP = Rule(
    name="sharded state",
    says="sharded_state_dict names all of the state once, and saves and loads it unchanged",
    next="build on upstream's linears and runtime.sharding.ShardedModule, or implement "
    "sharded_state_dict; a buffer that is not state is registered with persistent=False",
)
RECOMPUTE = Rule(
    name="activation checkpointing",
    says="under torch.utils.checkpoint the gradients are the same",
    next="let forward depend on its arguments and parameters alone",
)
PACKED = Rule(
    name="packed-sequences",
    says="a packed document comes out as if it were alone in its row",
    next="start anew at each of packed_seq_params.cu_seqlens_q (for a feature: cu_seqlens), or say "
    "packed-sequences = false",
)
INFERENCE = Rule(
    name="inference",
    says="token by token with upstream's static inference context, the logits are those of a "
    "forward pass over the whole row",
    next="keep the layer's state in the context under its layer_number, or say inference = false",
)
SPREAD = Rule(
    name="parallelism",
    says="over two ranks the model computes what it does on one, before and after a step",
    next="look at the collectives of the forward and backward pass and at the sharded state, or "
    "set the capability to false in [supports]",
)
WIDTHS = Rule(
    name="fp8 widths",
    says="under fp8 every linear of the seam has outputs and inputs on each rank that are "
    "multiples of 16, or the model is refused when it is built",
    next="build every linear in the constructor, as a submodule, so that its widths are known "
    "then; round its sizes on each rank up to multiples of 16",
)
REFUSED = Rule(
    name="refusal",
    says="what [supports] does not say is refused before anything is built",
    next="set what the seam does not support to false",
)
