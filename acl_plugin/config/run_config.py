"""The options of a run, in sections."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from acl_plugin.config.probe_section import ProbeConfig
from acl_plugin.config.sections import (
    CoresetConfig,
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    MachineConfig,
    ObjectiveConfig,
    ThreatConfig,
    TrainingConfig,
)
from acl_plugin.errors import unknown


@dataclass(frozen=True)
class RunConfig:
    """Resolved options of `acl-plugin run`, in sections.

    Every option has one name: it is a field of one section, ``config.training.lr``, and a flag, ``--lr``.
    """

    data: DataConfig = field(default_factory=DataConfig)
    threat: ThreatConfig = field(default_factory=ThreatConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    coreset: CoresetConfig = field(default_factory=CoresetConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    def options(self) -> dict[str, Any]:
        """Return the values of all options by name, without sections, as YAML types."""
        values = (item for section in vars(self).values() for item in vars(section).items())
        return {name: str(value) if isinstance(value, Path) else value for name, value in values}

    def replace(self, **options: Any) -> "RunConfig":
        """Return a copy with other values of ``options``, whose ranges are checked where the configuration is used.

        Options that have no effect with the others are not refused, as they are by ``preset`` and the command line.
        Another objective without ``objective_kwargs``, or backbone without ``backbone_kwargs``, has its own defaults.

        Raises:
            UsageError: for an unknown option, with the nearest.

        Example:
            >>> acl_plugin.preset("digits").replace(epochs=2, seed=1).training.epochs
            2
        """
        for name in options:
            if name not in SECTION_OF:
                raise unknown("option", name, SECTION_OF)
        before = self.options()
        for name, its_arguments in (("objective", "objective_kwargs"), ("backbone", "backbone_kwargs")):
            if options.get(name, before[name]) != before[name]:
                options = {its_arguments: {}} | options
        own = with_sections(options)
        return replace(self, **{name: replace(getattr(self, name), **values) for name, values in own.items()})


SECTIONS: dict[str, type] = {f.name: f.default_factory for f in fields(RunConfig)}  # type: ignore[misc]
"""Types of the sections by name, in display order."""
SECTION_OF = {f.name: name for name, section in SECTIONS.items() for f in fields(section)}
"""Name of the section of each option."""


def in_sections(options: Mapping[str, Any]) -> RunConfig:
    """Return the configuration with these options; the others have the defaults of the digits dataset."""
    return RunConfig(**{name: SECTIONS[name](**own) for name, own in with_sections(options).items()})


def with_sections(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``options`` with those of a run grouped in sections."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        (found.setdefault(SECTION_OF[name], {}) if name in SECTION_OF else found)[name] = value
    return found
