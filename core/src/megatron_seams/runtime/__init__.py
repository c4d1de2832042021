"""The half of megatron-seams that imports torch and Megatron: from a plan to a model that runs.

Nothing heavy is imported here: the planner may name this package without paying for torch.
"""

from typing import Final

#: The megatron-core releases that the runtime builds on. Reading and planning have no such limit.
MEGATRON_CORE: Final = ">=0.17,<0.20"
