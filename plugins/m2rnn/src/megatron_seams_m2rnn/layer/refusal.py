"""The refusals of what the manifest does not claim."""

from typing import Final

from megatron_seams.runtime.refusals import Refusals

REFUSALS: Final = Refusals(seam="m2rnn", owner="@megatron-seams/recurrent")
