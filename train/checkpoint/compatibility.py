"""What the numbers in a checkpoint depend on: a run resumes only from a checkpoint with the same origin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from train.config import Config
from train.fingerprint import DEFAULTS, EXTENDABLE, bound, fingerprint, identity
from zerotune.common.version import versions as installed

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes", "safetensors", "numpy")
# Kinds of sharding that read each other's checkpoints, with any number of ranks.
FAMILIES = (("single", "ddp"), ("zero-1", "zero-2", "zero-3"), ("fsdp",))

# Prefix of a digest's name. Checkpoints of earlier versions lack these digests and can be resumed.
CONFIG_OF = "config.json of "


@dataclass(frozen=True)
class Origin:
    """The origin of a checkpoint or of a run.

    fingerprint: of the configuration. config: the keys it covers, to name those that differ.
    distributed: the kind of sharding by name (`single`, `ddp`, ...). world_size: number of processes.
    digests: of inputs outside the configuration (chat template, data, base model), by name. extend: whether the run
    may be given a later end.
    """

    fingerprint: str
    config: Mapping[str, Any]
    distributed: str
    world_size: int
    digests: Mapping[str, str] = field(default_factory=dict)

    extend: bool = False

    @classmethod
    def of(cls, config: Config, distributed: str, world_size: int, digests: Mapping[str, str] | None = None) -> Origin:
        """The origin of a run with this configuration."""
        extend = config.run.extend
        return cls(fingerprint(config), bound(config), distributed, world_size, dict(digests or {}), extend)

    def changed(self, manifest: Mapping[str, Any]) -> dict[str, str]:
        """Keys of the configuration that differ between this run and the checkpoint, each with a line for the user."""
        saved, now = identity(manifest["config"]), identity(json.loads(json.dumps(dict(self.config))))
        return {
            key: f"{key}: {_shown(saved, key)} in the checkpoint, {_shown(now, key)} now"
            for key in sorted({**saved, **now})
            if (key in saved and key in now) or key not in DEFAULTS  # else one of the two does not use the key
            if _shown(saved, key) != _shown(now, key)
        }

    def can_extend(self, manifest: Mapping[str, Any]) -> bool:
        """Whether this run differs from that of `manifest` only in its end; see EXTENDABLE."""
        changed = self.changed(manifest)
        return bool(changed) and set(changed) <= set(EXTENDABLE) and not self._changed_inputs(manifest)

    def differences(self, manifest: Mapping[str, Any]) -> list[str]:
        """One line for each difference between this run and the checkpoint that forbids resuming."""
        if self.extend and self.can_extend(manifest):
            return []
        return [*self.changed(manifest).values(), *self._changed_inputs(manifest)]

    def _changed_inputs(self, manifest: Mapping[str, Any]) -> list[str]:
        """Differences outside the configuration. Inputs without a saved digest are not compared."""
        saved = manifest["digests"]
        lines = [
            f"{name}: digest {_shown(saved, name)} in the checkpoint, {_shown(self.digests, name)} now"
            for name in sorted(saved)
            if saved[name] != self.digests.get(name)
        ]
        if _family(manifest["distributed"]) != _family(self.distributed):
            lines.append(f"sharding: {manifest['distributed']} in the checkpoint, {self.distributed} now")
        return lines


def _family(distributed: str) -> tuple[str, ...]:
    return next((family for family in FAMILIES if distributed in family), (distributed,))


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False, sort_keys=True) if key in values else "absent"


def versions() -> dict[str, str]:
    """Versions of Python and of those PACKAGES that are installed."""
    return installed(PACKAGES)
