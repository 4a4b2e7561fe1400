"""The seam between the learner and an algorithm. One algorithm is one file that satisfies `Algorithm`; there is no base
class to inherit and no registry to edit: a recipe names the file. The learner knows nothing else about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import gymnasium as gym
import torch
from torch import Tensor, nn

from rollcall.cluster.messages.attempt import Unit
from rollcall.learners.collective import Collective
from rollcall.learners.declared import Needs

Models = Mapping[str, nn.Module]  # control: {"actor_critic": ActorCritic}; language: {"policy": TokenPolicy, ...}
Metrics = dict[str, Tensor]  # 0-dim tensors

TARGET = "target_"  # a target network is called as the model that it follows, with this before it


@dataclass(frozen=True)
class Context:
    """What an algorithm may use of the learner process that it runs in."""

    models: Models
    generator: torch.Generator  # of all shuffling, the same on every process
    collective: Collective
    spaces: tuple[gym.Space[Any], gym.Space[Any]] | None = None  # (observation, action) in control
    # What is to be reported of the batch beside the losses' metrics; of all processes alike. Empty before each batch.
    noted: Metrics = field(default_factory=dict)


class Loss(NamedTuple):
    """Of one part of a minibatch, in a form that adds up: the sum over its valid steps / the number of the whole
    minibatch's, so that sums over parts and processes are those of the whole."""

    loss: Tensor  # 0-dim, with gradient
    metrics: Metrics
    # [N], of the samples of the whole batch, 0 where the part has none: priorities, say. Of the batch's last epoch.
    per_sample: Tensor | None = None


Batch = TypeVar("Batch", contravariant=True)
Prepared = TypeVar("Prepared")
PreparedIn = TypeVar("PreparedIn", contravariant=True)
Part = TypeVar("Part")
PartOut = TypeVar("PartOut", covariant=True)


class Minibatch(Protocol[PartOut]):
    """What one gradient is computed from."""

    @property
    def ends_epoch(self) -> bool: ...

    def shards(self, rank: int, num_processes: int) -> Iterable[PartOut]:
        """What this learner process computes the loss of, in parts that fit into memory: at least one."""


class Algorithm(Protocol[Batch, Prepared, Part]):
    """An algorithm is a small object built from its frozen config, `Algorithm(config)`. Its file names the class in the
    module variable ALGORITHM, and the class names its config model in the class attribute Config.

    Some have more: an update of their own (`update.py`), or what the protocols below say.
    """

    name: str
    unit: Unit  # what one ticket produces for it
    needs: Needs  # the class's hold for every config, an instance's for its own

    def prepare(self, context: Context, batch: Batch) -> Prepared:
        """Once per batch, before the first epoch, without gradients: advantages, targets, flat views."""

    def minibatches(self, context: Context, prepared: Prepared) -> Iterator[Minibatch[Part]]:
        """All minibatches of all epochs, in order."""

    def loss(self, context: Context, part: Part) -> Loss:
        """Pure: may be compiled."""


class Epoch(Protocol[PartOut]):
    """An epoch's minibatches side by side, for a compiler: all are of one shape, and of one part each."""

    def __len__(self) -> int: ...

    def part(self, index: Tensor) -> PartOut:
        """Of the minibatch `index`, 0-dim int64. In operations on tensors alone, so that it can be compiled."""


@runtime_checkable
class InEpochs(Protocol[PreparedIn, PartOut]):
    """An algorithm whose minibatches come an epoch at a time, too: one program then makes all the steps of it. Its
    losses have no `per_sample`."""

    def epochs(self, context: Context, prepared: PreparedIn) -> Iterator[Epoch[PartOut]]:
        """The same minibatches as `minibatches`, for a learner that is one process."""


def in_epochs(algorithm: Algorithm[Any, Any, Any]) -> InEpochs[Any, Any] | None:
    """The algorithm, where it is so: not where it inherits its epochs and has minibatches of its own."""
    kinds = type(algorithm).__mro__

    def first_with(name: str) -> int:
        return next((place for place, kind in enumerate(kinds) if name in vars(kind)), len(kinds))

    own = isinstance(algorithm, InEpochs) and first_with("epochs") <= first_with("minibatches")
    return algorithm if own and isinstance(algorithm, InEpochs) else None


@runtime_checkable
class StopsEarly(Protocol):
    """An algorithm that may end a batch's updates before its last epoch."""

    def stops_early(self, metrics: Metrics) -> bool:
        """Asked after each epoch with the mean metrics of that epoch's minibatches."""


@runtime_checkable
class HasModels(Protocol):
    """An algorithm with state of its own: a moving-average baseline, say, as a buffer."""

    def extra_models(self) -> Models:
        """Put into the learner's models, and saved with them."""


@runtime_checkable
class ChecksModels(Protocol):
    """An algorithm that not every policy suits."""

    def check_models(self, models: Models) -> None:
        """Raises ValueError, which begins with `setting=value: `, where it cannot learn with these."""


@runtime_checkable
class BuildsNetworks(Protocol):
    """An algorithm with networks of its own that are made for the policy's spaces, `needs.networks` by name. They are
    trained, and kept in checkpoints, but not published."""

    def networks(self, models: Models) -> Models:
        """For models["actor_critic"]. Their first weights are of torch's global randomness, which is seeded before."""


@runtime_checkable
class StepsApart(Protocol):
    """An algorithm whose models are stepped apart, as by optimisers of their own: each has its learning rate, its
    gradient is clipped by its own norm, and a step may be of some of them alone."""

    def learning_rates(self) -> Mapping[str, float | None]:
        """Of every model that is trained, by name. None: learner.learning_rate; the schedule counts for all."""


@runtime_checkable
class LearnsFromGradients(Protocol):
    """An algorithm whose batches are of gradients. Actors compute them, each over a unit that goes no further."""

    @property
    def of_actors(self) -> Algorithm[Any, Any, Any]:
        """Of whose loss an actor computes the gradient, over one unit as a batch of one minibatch."""


@runtime_checkable
class FollowsSteps(Protocol):
    """An algorithm with something to do after every optimiser step: to move target networks, say."""

    def after_step(self, context: Context) -> None:
        """Without gradients."""


def with_own_models(algorithm: Algorithm[Any, Any, Any], models: Models, *, seed: int = 0) -> dict[str, nn.Module]:
    """The models, and those that the algorithm brings along, builds or has copied, as far as they are not among them.
    `seed`: of the first weights of what it builds; the global random state is left as it was.

    Raises:
      ValueError: where the algorithm cannot learn with these models.
    """
    found = dict(algorithm.extra_models()) if isinstance(algorithm, HasModels) else {}
    found = {**models, **{name: model for name, model in found.items() if name not in models}}
    if isinstance(algorithm, BuildsNetworks) and not all(name in models for name in algorithm.needs.networks):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found |= algorithm.networks(models)
    for name in algorithm.needs.target_networks:
        if TARGET + name not in found:
            found[TARGET + name] = deepcopy(found[name]).requires_grad_(False)
    if isinstance(algorithm, ChecksModels):
        algorithm.check_models(found)
    return found


def for_acting(algorithm: Algorithm[Any, Any, Any], models: Models) -> list[str]:
    """The models that are published: all but those that only learning needs."""
    own = algorithm.needs.networks
    return [name for name in models if name not in own and not name.startswith(TARGET)]
