"""Every way things can go wrong: one class for each cause, with a stable code.

The classes are exceptions *and* values. A fault that must stop the caller is raised; a fault that
must not hide the next one is collected, and listed with the others (a *finding*) or raised together
with them in one :class:`Refusal`. Each cause belongs to one of six kinds (:class:`RecipeError`,
:class:`ManifestError`, :class:`UpstreamError`, :class:`ResolutionError`, :class:`BuildError`,
:class:`RecordError`), which a caller can catch.
"""

from megatron_seams.errors.base import *
from megatron_seams.errors.build import *
from megatron_seams.errors.manifest import *
from megatron_seams.errors.recipe import *
from megatron_seams.errors.record import *
from megatron_seams.errors.resolution import *
from megatron_seams.errors.upstream import *
