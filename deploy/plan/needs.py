"""What a run needs, as records: processes by their role, and what each of them holds, by name and size. What a kind of
run needs, the kind itself says (deploy/kinds)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

GIB = 1 << 30
MIB = 1 << 20
WORTH_NAMING = 0.05  # of what a process holds
Unit = Literal["learner", "actor", "evaluator"]  # who may have a GPU


@dataclass(frozen=True)
class Part:
    """Something that a process holds."""

    name: str  # "weights", "gradients", "KV cache"
    size_bytes: int
    shrink: str = ""  # the setting, or settings, that make it smaller
    host: bool = False  # in the machine's memory also where the process has a GPU
    on_gpu: Callable[[int], int] | None = None  # of a GPU with so many bytes, where it is of another size there


@dataclass(frozen=True)
class Role:
    """Processes that are alike."""

    name: str  # "learner process"
    parts: tuple[Part, ...]
    count: int = 1
    unit: Unit | None = None  # of those that may have a GPU

    def size_bytes(self, *, on_gpu: bool) -> int:
        """Of one process, in the machine's memory. `on_gpu`: it has a GPU, which holds most of it."""
        return sum(part.size_bytes for part in self.parts if part.host or not on_gpu)

    def for_gpu(self, gpu_bytes: int) -> Role:
        """With the sizes that its parts have where each process has (a part of) such a GPU."""
        sized = (
            part if part.on_gpu is None else replace(part, size_bytes=part.on_gpu(gpu_bytes)) for part in self.parts
        )
        return replace(self, parts=tuple(sized))

    @property
    def device_bytes(self) -> int:
        """Of one process, on a GPU if it has one."""
        return sum(part.size_bytes for part in self.parts if not part.host)

    @property
    def largest(self) -> list[Part]:
        """The parts that can be made smaller, the largest first; none that hardly count."""
        least = WORTH_NAMING * sum(part.size_bytes for part in self.parts)
        found = (part for part in self.parts if part.shrink and part.size_bytes >= least)
        return sorted(found, key=lambda part: -part.size_bytes)

    @property
    def plural(self) -> str:
        return f"{self.name}es" if self.name.endswith("s") else f"{self.name}s"


@dataclass(frozen=True)
class Engines:
    """What generation engines need beside their weights, for a GPU to be shared out."""

    weights_bytes: int  # in the dtype that an engine has on a GPU
    workspace_bytes: int
    cache_bytes_per_token: int
    longest: int  # tokens of prompt and completion
    wanted: int  # sequences side by side

    @property
    def least_bytes(self) -> int:
        """With room for one sequence's keys and values."""
        return self.weights_bytes + self.workspace_bytes + self.cache_bytes_per_token * self.longest

    @property
    def best_bytes(self) -> int:
        """With room for all that it is asked to work on side by side."""
        return self.weights_bytes + self.workspace_bytes + self.cache_bytes_per_token * self.longest * self.wanted


@dataclass(frozen=True)
class Needs:
    """Of one run."""

    model: str  # in words: "Qwen3ForCausalLM, 0.8M parameters"
    roles: tuple[Role, ...]
    published_bytes: int = 0  # of one version of the weights
    trajectories_bytes: int = 0  # of those that are under way at a time
    checkpoint_bytes: int = 0  # of one, on disk
    checkpoints_kept: int = 1
    begins_bytes: int = 0  # on disk, of what the run makes before its first step
    on_ray: bool = True
    engines: Engines | None = None
    tokens: int | None = None  # of the learner's largest forward pass

    @property
    def object_store_bytes(self) -> int:
        """Of a private cluster: the versions that are kept, the one that is being published, the one that an engine
        still reads, and trajectories."""
        return VERSIONS_IN_FLIGHT * self.published_bytes + self.trajectories_bytes if self.on_ray else 0

    @property
    def disk_bytes(self) -> int:
        """While a checkpoint is written, there is one more than are kept."""
        return self.begins_bytes + (self.checkpoints_kept + 1) * self.checkpoint_bytes

    def for_gpu(self, gpu_bytes: int, units: Collection[Unit]) -> Needs:
        """With such a GPU for each of these processes."""
        return replace(
            self, roles=tuple(role.for_gpu(gpu_bytes) if role.unit in units else role for role in self.roles)
        )

    def role(self, unit: Unit) -> Role | None:
        return next((role for role in self.roles if role.unit == unit), None)


VERSIONS_IN_FLIGHT = 4


def in_words(size_bytes: float) -> str:
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    return f"{size_bytes / MIB:.0f} MiB"


def counted(parameters: float) -> str:
    """Parameters, as people say them."""
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= size:
            return f"{parameters / size:.3g}{name}"
    return f"{parameters:.0f}"


def parts(*found: Part) -> tuple[Part, ...]:
    """Those of any size."""
    return tuple(part for part in found if part.size_bytes > 0)


def settings_of(found: Iterable[Part]) -> str:
    """What to change, each setting once, of the largest parts first."""
    return ", ".join(dict.fromkeys(setting for part in found for setting in part.shrink.split(", ") if setting))
