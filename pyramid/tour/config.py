"""How large the demo is."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyramid.sim.config import SimConfig


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Sizes of a demo that a laptop runs in a few minutes; the label models' own are their ``tiny`` presets."""

    sim: SimConfig = field(default_factory=lambda: SimConfig(n_robot=24, action_noise=0.1))
    """The videos and episodes that a simulator makes as input."""
    size_px: int = 64
    """Height and width of the packed frames."""
    frames_per_shard: int = 400
    """Small shards, so that there are several."""
    lam_steps: int = 200
    """Optimiser steps of the latent-action model."""
    idm_steps: int = 400
    """Optimiser steps of the inverse dynamics model."""
    evaluate_pairs: int = 768
    """Pairs of frames that the latent-action model is evaluated on; >= 2."""
    policy: str = "vla/tiny"
    """The policy: a preset or a YAML file."""
    vla_steps: int = 200
    """Optimiser steps of the policy."""
    draws: int = 10_000
    """Samples that the mixture is proved for."""
    bench_runs: int = 50
    """Calls of the exported policy that are timed."""

    def __post_init__(self) -> None:
        """Refuses sizes with which a stage would have nothing to do."""
        for name in ("lam_steps", "idm_steps", "vla_steps", "draws", "bench_runs", "frames_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.evaluate_pairs < 2:
            raise ValueError(f"evaluate_pairs must be at least 2, got {self.evaluate_pairs}")
