"""megatron-seams: custom blocks for Megatron-Core hybrid models, without a fork.

The names below are the public surface, imported when they are first asked for; docs/python.md has
them on one page. All other modules are private, but for those that plugins import: ``hookspecs``,
``errors``, ``runtime.conformance`` and the helpers that docs/write-a-seam.md lists.

    >>> import megatron_seams as ms
    >>> plan = ms.resolve(ms.load_recipe("recipes/nam56r-mamba2.toml"), ms.read_environment())
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from megatron_seams._version import __version__

if TYPE_CHECKING:
    from megatron_seams.errors import Refusal, SeamsError
    from megatron_seams.planning.environment import Environment, read_environment
    from megatron_seams.planning.plan import Custom, Layer, Plan, PlannedFeature
    from megatron_seams.planning.resolver import resolve
    from megatron_seams.recipes.recipe import Recipe, load_recipe
    from megatron_seams.records.receipt import make_receipt
    from megatron_seams.records.verify import verify
    from megatron_seams.seams.manifest import Manifest
    from megatron_seams.seams.seam import Seam
    from megatron_seams.upstream.surface import Native, NativeSurface

#: Public name -> the module that defines it.
_HOMES: Final = {
    "Custom": "planning.plan",
    "Environment": "planning.environment",
    "Layer": "planning.plan",
    "Manifest": "seams.manifest",
    "Native": "upstream.surface",
    "NativeSurface": "upstream.surface",
    "Plan": "planning.plan",
    "PlannedFeature": "planning.plan",
    "Recipe": "recipes.recipe",
    "Refusal": "errors",
    "Seam": "seams.seam",
    "SeamsError": "errors",
    "load_recipe": "recipes.recipe",
    "make_receipt": "records.receipt",
    "read_environment": "planning.environment",
    "resolve": "planning.resolver",
    "verify": "records.verify",
}

__all__ = [
    "Custom",
    "Environment",
    "Layer",
    "Manifest",
    "Native",
    "NativeSurface",
    "Plan",
    "PlannedFeature",
    "Recipe",
    "Refusal",
    "Seam",
    "SeamsError",
    "__version__",
    "load_recipe",
    "make_receipt",
    "read_environment",
    "resolve",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
