"""Loading the chosen seams of one plan: the first moment at which a plugin's code runs.

pluggy broadcasts a call to everything registered, lets the last one registered win, and ignores
hooks that it does not know. So the choice is made before: each plan gets a PluginManager of its own
with the chosen seams and nothing else, and each plugin must implement what its manifest declares.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pluggy

from megatron_seams import hookspecs
from megatron_seams.base.distributions import raised
from megatron_seams.base.structure import structure
from megatron_seams.errors import (
    HookMissing,
    HookUndeclared,
    OptionsInvalid,
    PluginImport,
    Refusal,
    SeamsError,
    Shadowed,
)
from megatron_seams.hookspecs import PROJECT, FeatureContext, LayerContext, hookspec
from megatron_seams.planning.constraints import invalid_option
from megatron_seams.seams.seam import Seam


@attrs.frozen(kw_only=True)
class LoadedSeams:
    """The plugins of one plan, imported and registered, with validated options.

    Attributes:
        manager: The plan's own PluginManager.
        options: Seam name -> the validated options, None for a seam that takes none.
    """

    manager: pluggy.PluginManager
    options: Mapping[str, Any]

    def call(self, seam: Seam, context: LayerContext | FeatureContext) -> Any:
        """Call the one hook of ``seam``.

        Raises:
            HookMissing: The hook returned nothing.
        """
        hook = getattr(self.manager.hook, seam.manifest.hook)
        (result,) = hook(context=context) or (None,)
        if result is None:
            raise HookMissing(
                asked=f"what hook {seam.manifest.hook!r} of {seam.claim} builds",
                found="it returned None",
                next=f"ask {seam.owner}: the hook returns what its specification says",
                subject=seam.name,
            )
        return result


def load_plugins(
    seams: Iterable[Seam], options: Mapping[str, Mapping[str, Any]] | None = None
) -> LoadedSeams:
    """Import the plugins of the chosen seams and compare each with its manifest.

    Args:
        seams: The seams of one plan, at most one for each family.
        options: Seam name -> the recipe's options, as parsed.

    Raises:
        Refusal: With every fault: an import that fails, a module that comes from elsewhere than the
            manifest, a hook undeclared or missing, options that the seam does not accept.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs.Hooks)
    validated: dict[str, Any] = {}
    faults: list[SeamsError] = []
    for seam in seams:
        try:
            module = _import(seam)
            _register(manager, seam, module)
            validated[seam.name] = _options(seam, module, (options or {}).get(seam.name, {}))
        except SeamsError as fault:
            faults.append(fault)
        except Refusal as refusal:
            faults.extend(refusal.reasons)
    if faults:
        raise Refusal(faults)
    manager.check_pending()
    return LoadedSeams(manager=manager, options=validated)


def _add_family(manager: pluggy.PluginManager, seam: Seam) -> None:
    """Give the seam's family its hooks, where core does not list them already."""

    def layer(context: LayerContext) -> Any:
        """Build a layer of a family that a manifest introduced."""

    def options() -> type:  # type: ignore[empty-body] # a spec has no body
        """Name the attrs class of the seam's options."""

    class Introduced:
        """The hooks of one family."""

    if not hasattr(manager.hook, seam.manifest.hook):
        setattr(Introduced, seam.manifest.hook, staticmethod(hookspec(layer)))
    setattr(Introduced, seam.manifest.options_hook, staticmethod(hookspec(options)))
    manager.add_hookspecs(Introduced)


def _import(seam: Seam) -> ModuleType:
    """Import the seam's plugin module, from where its manifest lies.

    Raises:
        PluginImport: The import fails.
        Shadowed: Another copy was imported.
    """
    name = f"{seam.package}.plugin"
    try:
        module = importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit in a plugin must not end the run
        raise PluginImport(
            asked=f"the plugin module {name} of {seam.claim}",
            found=f"{type(error).__name__}: {error}",
            next=f'run `python -c "import {name}"` for the traceback, and ask {seam.owner}',
            subject=seam.name,
        ) from error
    found = Path(module.__file__ or "").resolve()
    if Path(seam.directory).resolve() not in found.parents:
        raise Shadowed(
            asked=f"the plugin module {name} from {seam.directory}",
            found=f"it was imported from {found}",
            next="remove the other copy, or start from another working directory",
            subject=seam.name,
        )
    return module


def _register(manager: pluggy.PluginManager, seam: Seam, module: ModuleType) -> None:
    """Register a plugin that implements what its manifest declares, and nothing else.

    Raises:
        HookMissing: The hook is missing, or takes arguments that no caller gives.
        Refusal: With a :class:`HookUndeclared` for each hook that the manifest does not declare.
    """
    _add_family(manager, seam)
    declared = {seam.manifest.hook, seam.manifest.options_hook}
    implemented = {
        name for name in dir(module) if manager.parse_hookimpl_opts(module, name) is not None
    }
    if seam.manifest.hook not in implemented:
        # A misspelt hook is missing and undeclared, and is one fault.
        raise _hook_missing(seam, module, f"implements {sorted(implemented) or 'no hook'}")
    undeclared = [
        HookUndeclared(
            asked=f"only the hooks that the manifest of {seam.claim} declares",
            found=f"{module.__name__} also implements {name!r}",
            next=f"declare it in a manifest of its own, or remove it; ask {seam.owner}",
            subject=seam.name,
        )
        for name in sorted(implemented - declared)
    ]
    if undeclared:
        raise Refusal(undeclared)
    try:
        manager.register(module, name=seam.name)
    except pluggy.PluginValidationError as error:
        raise _hook_missing(seam, module, f"implements another: {error}") from error


def _hook_missing(seam: Seam, module: ModuleType, found: str) -> HookMissing:
    return HookMissing(
        asked=f"hook {seam.manifest.hook!r}, which the manifest of {seam.claim} declares",
        found=f"{module.__name__} {found}",
        next=f"implement it with @hookimpl; ask {seam.owner}",
        subject=seam.name,
    )


def _options(seam: Seam, module: ModuleType, given: Mapping[str, Any]) -> Any:
    """Validate the recipe's options by the class that the seam names.

    Returns:
        An instance of that class; None for a seam that takes no options.

    Raises:
        OptionsInvalid: There are options for a seam that takes none.
        HookMissing: The hook raises an error, or gives something else than an attrs class.
        Refusal: With an :class:`OptionsInvalid` for each key that the class does not accept.
    """
    hook = getattr(module, seam.manifest.options_hook, None)
    if hook is None:
        if given:
            raise OptionsInvalid(
                asked=f"[seams.{seam.name}] {', '.join(sorted(given))}",
                found=f"{seam.claim} takes no options",
                next="remove the table from the recipe",
                subject=seam.name,
            )
        return None
    value, wrong = structure(_options_class(seam, hook), given)
    if wrong:
        raise Refusal(invalid_option(seam, fault) for fault in wrong)
    return value


def _options_class(seam: Seam, hook: Callable[[], Any]) -> type:
    """The attrs class that a seam's hook names for its options.

    Raises:
        HookMissing: It names none.
    """
    try:
        named = hook()
        found = f"it returned {named!r:.60}"
    except Exception as error:  # noqa: BLE001 - a plugin's code may raise anything
        named, found = None, f"it raised {raised(error)}"
    if isinstance(named, type) and attrs.has(named):
        return named
    raise HookMissing(
        asked=f"the attrs class from hook {seam.manifest.options_hook!r} of {seam.claim}",
        found=found,
        next=f"ask {seam.owner}: the hook returns the class of the seam's options",
        subject=seam.name,
    )
