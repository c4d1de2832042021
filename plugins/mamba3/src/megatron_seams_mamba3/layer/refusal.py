"""The refusals of what the manifest does not claim."""

from typing import Final

from megatron_seams.runtime.refusals import Refusals

REFUSALS: Final = Refusals(seam="mamba3", owner="@megatron-seams/recurrent")
