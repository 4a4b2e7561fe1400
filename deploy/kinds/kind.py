"""What a kind of run is: the one seam at which runs differ. The command line, the lifecycle, the drives and the
runtimes ask these protocols, and none of them asks which kind it has before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from rollcall.actors.trajectory_scoring import ItemMapping, RewardEndpoint, TrajectoryScorer
from rollcall.cluster.checkpoint import list_checkpoints
from rollcall.cluster.loop.task_source import TaskSource
from rollcall.cluster.messages.reports import StepOrder, StepReport
from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.config.kind_settings import KindSettings
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.constitutional_config import CriticConfig
from rollcall.deploy.config.recipe.reward_config import RewardConfig
from rollcall.deploy.config.recipe.root_config import RootConfig
from rollcall.deploy.config.settings import Settings
from rollcall.deploy.kinds.exporting import Exported, ExportOptions
from rollcall.deploy.kinds.language.warm_start import WarmStart
from rollcall.deploy.kinds.outside import OutsideShards
from rollcall.deploy.kinds.preference_trainer import PreferenceTraining
from rollcall.deploy.plan.gpus import Shares
from rollcall.deploy.plan.needs import Needs
from rollcall.deploy.report.counted import Counted
from rollcall.deploy.report.recorders import Recorder
from rollcall.learners.collective import Collective
from rollcall.learners.data.source import BatchSource
from rollcall.learners.loop.learner import Learner
from rollcall.reward_service.client import RewardClient
from rollcall.reward_service.labelling.redis_queue import LabellingConfig
from rollcall.reward_service.scorer import Taken

POLICY_ID = "policy"
ServeCritic: TypeAlias = Callable[[CriticConfig], CriticConfig]


@dataclass(frozen=True)
class EvalOptions:
    """What `rollcall eval` asks for beside the checkpoint."""

    episodes: int | None = None
    seed: int | None = None
    stochastic: bool = False
    video: Path | None = None
    record: str | None = None  # a file, or minari:ID: where the episodes go, for others to learn from


class LoadedRun(Protocol):
    """A checkpoint of a run, whose weights are at hand."""

    @property
    def checkpoint(self) -> Path: ...

    @property
    def weights(self) -> Weights: ...

    def evaluate(self, options: EvalOptions) -> dict[str, Any]:
        """The same checkpoint and options give the same result.

        Raises:
          BadInput: for an option that the run has no use for, or where there is nothing to evaluate on.
        """

    def export(self, options: ExportOptions) -> Exported:
        """Writes the policy for other programs, in one move; an earlier export there is replaced.

        Raises:
          BadInput: for what the run has no policy for, or where anything but an earlier export is in the way.
        """

    def write_beginning(self, directory: Path, origin: Mapping[str, Any]) -> None:
        """Puts what a new run begins with into that run's `directory`, in one move; `origin` says where it is from."""


@dataclass(frozen=True)
class RunKind:
    """One kind of run. Adding one: a file with such an object, and its place in registry.py."""

    settings: KindSettings  # what its recipes have
    counts: Counted  # what its steps and its summary count
    make: Callable[[Any, Path], Driven]  # what a run of such a config is made of, in its directory; begins nothing
    load: Callable[[StoredRun], LoadedRun]  # what a checkpoint of it holds
    elsewhere: Callable[[Path], str]  # where its policy is, for somebody who asked for one of another form
    closing_lines: Callable[[Mapping[str, Any], Path], list[str]]  # printed of a summary when a run has ended
    console: Callable[..., Recorder]  # (stream, live=..., began=...): what a run shows of itself while it goes
    eval_line: Callable[[Mapping[str, Any]], str]  # an evaluation in one line
    data: str = ""  # what its runs learn from or with, alone; empty: they have actors
    policy: Literal["network", "language model", "table", "none"] = (
        "none"  # in its checkpoints, for another run to begin with
    )
    misfit: Callable[[Any, Any], str] = lambda config, loaded: ""  # why a run cannot begin with such a policy
    unfit_expert: Callable[[Any, Any], str] = lambda config, loaded: ""  # why a run cannot be taught by such a policy
    unfit: Callable[[Any], list[Problem]] = lambda config: []  # what env, network and machine cannot do of a config
    resumable: Callable[[Path], bool] = lambda directory: bool(list_checkpoints(directory))  # one that was stopped
    exportable: bool = False  # `rollcall export` writes its policy
    exports: bool = False  # its policy is exported when the run has ended and is summed up
    evaluates: bool = True  # a checkpoint of it can be judged after the run

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def config(self) -> type[RootConfig]:
        return self.settings.config

    def problems(self, config: Any) -> list[Problem]:
        """In a config, that no component can check alone."""
        return self.settings.problems(config) or self.unfit(config)


@dataclass(frozen=True)
class StoredRun:
    """A run in its directory, as config.yaml has it."""

    kind: RunKind
    config: Any  # of the class `kind.config`
    directory: Path
    config_hash: str  # of config.yaml as it was written
    checkpoint: Path | None = None  # the one that was named
    written: Settings = field(default_factory=Settings)  # what is in config.yaml, of a run that was read from there


@dataclass(frozen=True)
class NestedRun:
    """A run of another kind that is made before a run's own, in a directory of its own."""

    kind: RunKind
    config: RootConfig
    directory: Path
    told: Callable[[Mapping[str, Any]], None] = lambda summary: None  # with its summary


class OfflineLearner(Protocol):
    """What learns in a run of one process: a Learner, or a table's."""

    def update(self, batch: Sequence[Any], order: StepOrder) -> tuple[StepReport, Weights | None]: ...
    def weights(self, *, epoch: int, version: int) -> Weights: ...
    def save(self, directory: Path, weights: Weights) -> None: ...
    def restore(self, checkpoint: Path) -> None: ...


class OfflineRun(Protocol):
    """A run without actors: on a data set, or of a table that plays its env itself. Built anew in every process of the
    run; its models are made when its learner is asked for, which is after its preparations."""

    @property
    def drive(self) -> Literal["offline", "collecting"]: ...

    @property
    def learner(self) -> OfflineLearner: ...

    @property
    def source(self) -> BatchSource[Any]: ...

    def needs(self) -> Needs:
        """As of MemberFactory."""

    @property
    def steps(self) -> int: ...

    @property
    def policy_id(self) -> str: ...

    @property
    def eval_every(self) -> int:
        """Learner steps between evaluations."""

    @property
    def is_over(self) -> bool:
        """Whether there is no point in more steps, after an evaluation."""

    def preparations(self) -> Iterator[Preparation]:
        """As of MemberFactory.

        Raises:
          BadInput: when the data cannot be learnt from, or there is no model to begin with.
        """

    def save(self, checkpoint: Path) -> None:
        """Writes what `restore` needs beside the learner's state into a checkpoint that is being made."""

    def restore(self, checkpoint: Path) -> None: ...

    def evaluate(self, step: int) -> Mapping[str, Any] | None:
        """On what is held out: `mean`, `std`, `n`, `unit`, and whatever else is known. None: not while it trains."""

    def finish(self, steps_done: int) -> Mapping[str, Any]:
        """After the last step, or where the run was stopped: writes the model; what is to be added to the summary."""


class CollectingRun(OfflineRun, Protocol):
    """A run that makes the data it learns from itself, from time to time, with an engine in its own process."""

    @property
    def reward_config(self) -> RewardConfig | None:
        """Who is to score what is sampled; None: the task itself, or nobody."""

    def begin_collecting(
        self, reward: RewardEndpoint | None, stop_requested: Callable[[], bool], serve: ServeCritic
    ) -> None:
        """Before its first step, once all is prepared. Where a stop is requested, its source has no more batches.
        `serve`: a critic that is a model's directory, as one that can be asked; until the run ends."""

    def close(self) -> None:
        """After its last step: lets go of the engine."""


Preparation: TypeAlias = NestedRun | WarmStart  # made before a run's own steps


class SearchRun(Protocol):
    """A run whose steps are runs of their own, each in a process of its own."""

    @property
    def drive(self) -> Literal["search"]: ...

    def needs(self) -> Needs:
        """As of MemberFactory, of one of them."""

    def preparations(self) -> Iterator[Preparation]:
        """As of MemberFactory."""


class MemberFactory(Protocol):
    """Makes the members of one run with actors. Travels to their processes."""

    @property
    def drive(self) -> Literal["online"]: ...

    @property
    def run_directory(self) -> Path: ...

    @property
    def counts(self) -> Counted:
        """What its steps and its summary count."""

    @property
    def generates(self) -> bool:
        """Whether an actor is an engine that works on many tickets at a time."""

    @property
    def actor_prefix(self) -> str:
        """What actors are called: gym-0, lm-0."""

    @property
    def label(self) -> str:
        """The env or task, for metrics."""

    @property
    def modules(self) -> Sequence[str]:
        """Of the user's own, which every process imports."""

    @property
    def model_directory(self) -> Path | None:
        """Of the model whose names for tensors engines go by, where there are engines."""

    @property
    def weight_transfer(self) -> Literal["object_store", "nccl", "ipc"]:
        """How actors get new weights."""

    @property
    def can_be_exact(self) -> bool:
        """Whether a run at rest can be continued bit for bit from its checkpoint."""

    @property
    def eval_episodes(self) -> int:
        """Of each evaluation: episodes, or held-out rows. 0: there is none."""

    @property
    def evaluates_at_start(self) -> bool: ...

    def check(self) -> None:
        """Raises BadInput where they do not fit, before anything is begun."""

    def needs(self) -> Needs:
        """What the run will take of memory and disk. Nothing is loaded for it.

        Raises:
          BadInput: when it cannot be known: of a model, say, whose config cannot be read.
        """

    def preparations(self) -> Iterator[Preparation]:
        """What is to be made, once per run directory, for the members to load, one after the other. What an earlier
        process of this run has made is not made again."""

    @property
    def reward(self) -> RewardEndpoint | None:
        """Where trajectories are scored; None: by the env or the task itself."""

    @property
    def reward_config(self) -> RewardConfig | None:
        """What the launcher is to provide as `reward`."""

    @property
    def scored(self) -> Taken:
        """What the run gives to score."""

    @property
    def labelling(self) -> LabellingConfig | None:
        """How its reward service takes the labels of raters, where it does."""

    @property
    def asks_people(self) -> bool:
        """Whether the run waits for labels of people."""

    def with_reward(self, endpoint: RewardEndpoint) -> MemberFactory: ...

    def with_token_budget(self, tokens: int) -> MemberFactory | None:
        """This factory with so many padded tokens in a forward pass of the learner; None: that is not open."""

    def with_gpus(self, shares: Shares) -> MemberFactory:
        """This factory, once it is known who has how much of a GPU: what the settings leave open of engines."""

    def scorer(self) -> TrajectoryScorer:
        """Only with a reward endpoint."""

    @property
    def trains_on_preferences(self) -> bool:
        """Whether its policy waits for reward models that are trained meanwhile."""

    @property
    def preference_training(self) -> PreferenceTraining | None:
        """Of a run that does so, with a reward endpoint."""

    @property
    def outside(self) -> OutsideShards | None:
        """The part of its work that is done outside Ray, where there is one."""

    def preload(self, role: Literal["actor", "learner"]) -> None:
        """Imports what such a member needs, where that takes long: in its process, while what it loads is made."""

    def work(self) -> TaskSource: ...
    def actor(self, actor_id: str, source: Any) -> Any: ...
    def evaluator(self) -> Any: ...
    def learner(self, collective: Collective) -> Learner: ...


Driven: TypeAlias = MemberFactory | OfflineRun | CollectingRun | SearchRun  # what a run is made of, for its drive


def scorer_of(endpoint: RewardEndpoint, mapping: ItemMapping) -> TrajectoryScorer:
    """Asks the service of that endpoint."""
    client = RewardClient(endpoint.url, endpoint.token or None)
    return TrajectoryScorer(client, mapping, model=endpoint.model, patience_s=endpoint.patience_s)
