"""How a labelling job runs: `LabelConfig`, all of it plain data.

Which labelers run over which shards is left to the call of `pyramid.labels.engine.label`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """What a job asks of a Ray cluster; read with the executor ``ray`` only."""

    address: str = ""
    """Address of a running cluster, or ``auto`` to find it; empty starts a small one on this machine."""
    num_cpus: float = 1.0
    """CPUs that an actor reserves, > 0."""
    num_gpus: float = 0.0
    """GPUs that an actor reserves, >= 0; a fraction lets actors share one."""
    object_store_mb: int = 100
    """Object store of a cluster started here, MiB, >= 80; samples never pass through it."""

    wait_s: float = 1800.0
    """Seconds to wait for an actor while none has its models loaded, > 0: for a cluster to grow or recover."""

    def __post_init__(self) -> None:
        """Refuses reservations that no cluster could grant."""
        if self.num_cpus <= 0 or self.num_gpus < 0 or self.object_store_mb < 80 or self.wait_s <= 0:
            needed = "num_cpus > 0, num_gpus >= 0, object_store_mb >= 80 and wait_s > 0"
            raise ValueError(f"{needed} are needed, got {self}")


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """How labelers are run over shards."""

    device: str = "cpu"
    """Torch device of the models, or several with commas between: each gets a model process (``cuda:0,cuda:1``)."""
    batch_clips: int = 8
    """Clips handed to a labeler at a time, >= 1; labels do not depend on it."""
    decoders: int | None = None
    """Processes that decode for each model process, >= 0; 0 decodes in the model process. By default 0 on a CPU, which
    decoding and model share, and the workers divided among the devices elsewhere."""
    queue_clips: int = 16
    """Decoded clips that wait for the model at most, for each shard in hand, >= 1."""
    cache_mb: int = 4096
    """Disk for copies of remote shards, MiB, >= 0: the next are fetched while others are labelled; a copy is removed
    after its use. With 0, or less than two shards for each worker, stretches of a shard are read into memory."""
    autocast: Literal["off", "bfloat16", "float16"] = "off"
    """Precision of the networks; part of what decides a label."""
    compile: bool = False
    """Compile the networks with torch.compile; part of what decides a label."""
    retries: int = 2
    """Further attempts for a unit that failed whole, >= 0, before it is quarantined."""
    unit_timeout_s: float | None = None
    """Seconds that a unit may take before its process is killed, > 0; None for any."""
    max_failed_share: float = 0.1
    """The job stops when more than this share of its units failed whole (and more than one); in [0, 1]."""
    ray: RayConfig = field(default_factory=RayConfig)
    """What is asked of a Ray cluster."""

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.batch_clips < 1:
            raise ValueError(f"batch_clips must be at least 1, got {self.batch_clips}")
        if self.cache_mb < 0:
            raise ValueError(f"cache_mb must be at least 0, got {self.cache_mb}")
        if self.queue_clips < 1:
            raise ValueError(f"queue_clips must be at least 1, got {self.queue_clips}")
        if (self.decoders or 0) < 0 or self.retries < 0:
            raise ValueError(f"decoders and retries must be at least 0, got {self.decoders} and {self.retries}")
        if self.unit_timeout_s is not None and self.unit_timeout_s <= 0:
            raise ValueError(f"unit_timeout_s must be above 0, got {self.unit_timeout_s}")
        if not 0 <= self.max_failed_share <= 1:
            raise ValueError(f"max_failed_share must be in [0, 1], got {self.max_failed_share}")
        if not all(self.devices):
            raise ValueError(f"device must name a torch device, got '{self.device}'")

    @property
    def devices(self) -> list[str]:
        """The devices, one by one."""
        return [device.strip() for device in self.device.split(",")]

    def layout(self, workers: int) -> tuple[list[str], int]:
        """Returns the device of each model process, and the decode processes of each.

        Args:
            workers: processes for decoding; on a CPU that decodes by itself, model processes.
        """
        on_cpu = all(device == "cpu" for device in self.devices)
        decoders = self.decoders
        if decoders is None:
            decoders = 0 if on_cpu else max(1, workers // len(self.devices))
        if on_cpu and not decoders:
            return ["cpu"] * max(1, workers), 0
        return self.devices, decoders
