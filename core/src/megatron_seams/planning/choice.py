"""The provider of one family: native first, exactly one seam second, else a refusal."""

import datetime

import attrs

from megatron_seams.errors import (
    ExperimentNotNamed,
    FeatureInvalid,
    NativeContested,
    NativeOption,
    NoProvider,
    NotAllowed,
    OnlyBroken,
    OverrideInvalid,
    SeamsError,
    TwoSeams,
)
from megatron_seams.families import NAME, Family
from megatron_seams.planning.environment import Environment
from megatron_seams.recipes.policy import Override, Preferences
from megatron_seams.seams.allowlist import Allowlist
from megatron_seams.seams.seam import Seam
from megatron_seams.upstream.surface import NativeSymbol


@attrs.frozen(kw_only=True)
class Choice:
    """The provider of a family.

    Attributes:
        provider: The native symbol or the seam.
        why: The reason, in one sentence.
        retires: The usable seams that a native provider supersedes.
    """

    provider: NativeSymbol | Seam
    why: str
    retires: tuple[Seam, ...] = ()


@attrs.frozen(kw_only=True)
class Chooser:
    """Chooses the provider of one family at a time, by one environment and one recipe.

    A class, so that its rules are short methods that share these values.

    Attributes:
        environment: The Megatron and the seams.
        preferences: The recipe's choices between providers; by default it makes none.
        today: The day that decides whether an override has expired.
    """

    environment: Environment
    preferences: Preferences = attrs.field(factory=Preferences)
    today: datetime.date

    @property
    def _allowlist(self) -> Allowlist:
        allowed = self.preferences.policy.allow
        return self.environment.allowlist.narrowed("the recipe's [policy] allow", allowed)

    def is_block(self, family: str) -> bool:
        """Whether a family is known, and one of layers."""
        known = self.environment.families.get(family)
        return known is not None and known.kind == "block"

    def choose(self, family: str, *, of_layer: bool) -> Choice | SeamsError:
        """The provider of ``family``, or the one reason that it has none.

        Args:
            family: Its name.
            of_layer: Whether it is requested for layers, or else as a feature.
        """
        known = self.environment.families.get(family)
        if of_layer and known is not None and known.kind == "feature":
            return self._no_layer(known)
        overrides = [entry for entry in self.preferences.overrides if entry.family == family]
        if overrides:
            return self._override(family, overrides)
        seams = self.usable(family)
        native = self._native(family, seams) if of_layer else None
        if isinstance(native, SeamsError):
            return native
        if native is None:
            return self._one_seam(family, seams)
        why = f"native as {native.symbol!r}"
        if seams:
            contested = self._contested(family, native, seams)
            if contested is not None:
                return contested
            why += f"; supersedes seam {', '.join(seam.name for seam in seams)}"
        return Choice(provider=native, why=why, retires=tuple(seams))

    def usable(self, family: str) -> list[Seam]:
        """The valid seams of a family that this recipe may use: allowed, experiments if named."""
        return [
            seam
            for seam in self.environment.discovery.by_family.get(family, ())
            if (not seam.manifest.experiment or self.preferences.accepts(seam.name))
            and self._allowlist.against(seam.name) is None
        ]

    def _native(self, family: str, seams: list[Seam]) -> NativeSymbol | SeamsError | None:
        """The symbol that builds the family here, by core's constant for it or a seam's claim."""
        found = self.environment.surface.of_family(family)
        if not seams:
            return found
        symbols = {found.constant: found} if found else {}
        for seam in seams:
            constant = seam.manifest.upstream.symbol_name
            symbol = self.environment.surface.of_constant(constant) if constant else None
            if symbol is not None:
                symbols[symbol.constant] = symbol
        if len(symbols) > 1:
            claims = "; ".join(
                f"{seam.claim} accepts {seam.manifest.upstream.symbol_name}" for seam in seams
            )
            return NativeContested(
                asked=f"the native equivalent of {family}",
                found=f"this Megatron has {' and '.join(sorted(symbols))}; {claims}",
                next="agree with the owners on one symbol for the family",
                subject=family,
            )
        return next(iter(symbols.values()), None)

    def _megatron(self) -> str:
        return f"megatron-core {self.environment.surface.version}"

    def _contested(self, family: str, native: NativeSymbol, seams: list[Seam]) -> SeamsError | None:
        """The fault that upstream now builds a family whose seam accepts no equivalent."""
        against = [seam for seam in seams if seam.manifest.upstream.fallback == "refuse"]
        if not against:
            return None
        claims = " and ".join(seam.claim for seam in against)
        return NativeContested(
            asked=f"one provider for family {family!r}",
            found=f"{self._megatron()} builds it as {native.symbol!r}, and {claims} accepts no "
            "upstream equivalent",
            next=f'{against[0].owner} decides in seam.toml: [upstream] fallback = "native", '
            f'symbol-name = "{native.constant}"; or the recipe takes the seam for a while with '
            "[[override]]",
            subject=family,
        )

    def _one_seam(self, family: str, candidates: list[Seam]) -> Choice | SeamsError:
        pin = self.preferences.policy.pin.get(family)
        usable = [seam for seam in candidates if seam.name not in self.environment.misfits]
        options = [seam for seam in usable if self.environment.superseded_by(seam)]
        if options:
            return self._option(family, options[0])
        if pin is not None:
            usable = [seam for seam in usable if seam.name == pin]
        if len(usable) > 1:
            return TwoSeams(
                asked=f"one provider for family {family!r}",
                found=" and ".join(seam.claim for seam in usable),
                next=f'pin one in the recipe: [policy.pin] {family} = "{usable[0].name}"; or '
                "uninstall the other",
                subject=family,
            )
        if usable:
            (seam,) = usable
            why = "not native; the only seam for it"
            if pin is not None:
                why = "not native; the recipe pins this seam"
            return Choice(provider=seam, why=why)
        if pin is not None and candidates:
            return self._pin_misses(family, pin, candidates)
        return self._nobody(family, candidates)

    def _no_native(self, family: str) -> str:
        if self.environment.surface.version is None:
            return f"there is no Megatron that builds {family}"
        return f"{self._megatron()} has no {family}"

    def _on_trial(self, family: str, trial: list[Seam]) -> str:
        """That nothing but experiments builds the family, or says which native symbol is it."""
        claims = " and ".join(seam.claim for seam in trial)
        retired = [by for seam in trial if (by := self.environment.superseded_by(seam))]
        if retired:
            return (
                f"{self._megatron()} has {retired[0]}, and that it is {family} is declared only by "
                f"{claims}, an experiment"
            )
        return f"{self._no_native(family)}, and {claims} is an experiment"

    def _no_layer(self, family: Family) -> FeatureInvalid:
        return FeatureInvalid(
            asked=f"a layer of family {family.name!r}",
            found=f"{family.name} is a feature, which attaches beside the layers: {family.summary}",
            next=f"spell the layer by a block family, and ask for the feature with [[features]] "
            f'family = "{family.name}"',
            subject=family.name,
        )

    def _option(self, family: str, seam: Seam) -> NativeOption:
        by = self.environment.superseded_by(seam)
        return NativeOption(
            asked=f"family {family!r}",
            found=f"{self._megatron()} ships it as {by}, which retires {seam.claim}",
            next="set it under [megatron] and spell the layer by the native family that carries it",
            subject=family,
        )

    def _pin_misses(self, family: str, pin: str, candidates: list[Seam]) -> SeamsError:
        asked = f"seam {pin!r} for family {family!r}, as the recipe pins it"
        broken = [it for it in self._broken(family, candidates) if it[0] == pin]
        if (fault := self._not_allowed(asked, family, pin)) is not None:
            return fault
        if broken:
            return OnlyBroken(
                asked=asked,
                found=f"it is broken: {'; '.join(text for _, text, _ in broken)}",
                next="repair or reinstall it, or correct [policy.pin]"
                if any(not step for _, _, step in broken)
                else f"{_steps(broken)}, or correct [policy.pin]",
                subject=family,
                key=f"policy.pin.{family}",
            )
        return NoProvider(
            asked=asked,
            found=f"the seams for it are {', '.join(seam.name for seam in candidates)}",
            next="correct [policy.pin], or install the distribution that provides that seam",
            subject=family,
            key=f"policy.pin.{family}",
        )

    def _broken(self, family: str, candidates: list[Seam]) -> list[tuple[str, str, str]]:
        """Name, fault and next step of each unusable seam that is of the family, or may be.

        The step is empty where it is to repair the seam, as for a manifest that cannot be read.
        """
        unread = [
            (seam.name, f"{seam.distribution} {seam.version}: [{fault.code}] {fault.found}", "")
            for seam in self.environment.discovery.broken
            if self._may_be(seam.name, seam.manifest.seam.family if seam.manifest else None, family)
            for fault in seam.faults
        ]
        return unread + [
            (seam.name, f"{seam.claim}: [{fault.code}] {fault.found}", fault.next)
            for seam in candidates
            if (fault := self.environment.misfits.get(seam.name))
        ]

    def _nobody(self, family: str, candidates: list[Seam]) -> SeamsError:
        """The fault that nothing builds the family: broken seams, experiments, or none at all."""
        broken = self._broken(family, candidates)
        trial = [
            seam
            for seam in self.environment.discovery.by_family.get(family, ())
            if seam not in candidates
        ]
        install = self.preferences.install.get(family)
        asked = f"a provider for family {family!r}"
        if (fault := self._not_allowed(asked, family)) is not None:
            return fault
        if broken:
            return OnlyBroken(
                asked=asked,
                found=f"{self._no_native(family)}, and its only seams are broken: "
                + "; ".join(text for _, text, _ in broken),
                next="repair or reinstall what is named"
                if any(not step for _, _, step in broken)
                else _steps(broken),
                subject=family,
            )
        if trial:
            return ExperimentNotNamed(
                asked=asked,
                found=self._on_trial(family, trial),
                next=f'accept it in the recipe: [policy] experiments = ["{trial[0].name}"]',
                subject=family,
            )
        advice = f'install a plugin whose seam.toml says family = "{family}", or write one'
        if install:
            advice = f"pip install {install}"
        elif not NAME.match(family):
            advice = "correct the name: a family is named like [a-z][a-z0-9_]*"
        return NoProvider(
            asked=asked,
            found=f"{self._no_native(family)}, and no installed seam builds it",
            next=advice,
            subject=family,
        )

    def _not_allowed(self, asked: str, family: str, name: str | None = None) -> NotAllowed | None:
        """The fault that a seam for the family (the one of that name, if given) is not allowed."""
        for seam in self.environment.discovery.by_family.get(family, ()):
            against = self._allowlist.against(seam.name)
            if name in (None, seam.name) and against is not None:
                return NotAllowed(
                    asked=asked,
                    found=f"{seam.claim} is not allowed: {against}",
                    next="allow it there, or change the model",
                    subject=family,
                )
        return None

    def _may_be(self, name: str, known: str | None, family: str) -> bool:
        # A manifest that cannot be read names no family. If the seam has the family's name, or the
        # recipe names the seam, it is probably the one that is missing.
        if known is not None:
            return known == family
        pinned = self.preferences.policy.pin.get(family) == name
        return pinned or name == family or name in self.preferences.configured

    def _override(self, family: str, entries: list[Override]) -> Choice | SeamsError:
        entry = entries[0]
        problem = advice = ""
        seam = next((s for s in self.usable(family) if s.name == entry.seam), None)
        if len(entries) > 1:
            problem = f"{len(entries)} overrides for one family"
            advice = "keep one"
        elif self.today > entry.expires:
            problem = f"it expired on {entry.expires} (reason given: {entry.reason})"
            advice = "remove it, or give a new reason and date"
        elif (barred := self._not_allowed("", family, entry.seam)) is not None:
            problem, advice = barred.found, barred.next
        elif seam is None:
            seams = ", ".join(s.name for s in self.usable(family)) or "none"
            problem = f"no usable seam of that name builds {family}; the seams for it: {seams}"
            advice = "correct the name, or install the distribution that provides it"
        elif (fault := self.environment.misfits.get(seam.name)) is not None:
            problem, advice = fault.found, fault.next
        if problem or seam is None:
            return OverrideInvalid(
                asked=f"seam {entry.seam!r} over native for family {family!r}",
                found=problem,
                next=advice,
                subject=family,
                key=f"override[{self.preferences.overrides.index(entry)}]",
            )
        why = f"the recipe takes it over native until {entry.expires}: {entry.reason}"
        return Choice(provider=seam, why=why)


def _steps(broken: list[tuple[str, str, str]]) -> str:
    """The next steps for unusable seams, where each has one of its own."""
    return "; ".join(dict.fromkeys(step for _, _, step in broken))
