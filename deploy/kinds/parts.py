"""What a run is made of, whichever half it belongs to: the one seam at which control and language differ for the
launcher and the runtimes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from rollcall.actors.trajectory_scoring import ItemMapping, RewardEndpoint, TrajectoryScorer
from rollcall.cluster.loop.task_source import TaskSource
from rollcall.deploy.config.load import AnyConfig, LanguageConfig
from rollcall.deploy.config.reward_config import RewardConfig
from rollcall.deploy.kinds.preference_trainer import PreferenceTraining
from rollcall.learners.loop.collective import Collective
from rollcall.learners.loop.learner import Learner

POLICY_ID = "policy"


class Parts(Protocol):
    """Makes the members of one run. Travels to their processes."""

    @property
    def consumption_log(self) -> Path:
        """Which the learner writes."""

    @property
    def kind(self) -> Literal["control", "language"]:
        """control or language"""

    @property
    def actor_prefix(self) -> str:
        """What actors are called: gym-0, lm-0."""

    @property
    def label(self) -> str:
        """The env or task, for metrics."""

    @property
    def weight_transfer(self) -> Literal["object_store", "nccl", "ipc"]:
        """How actors get new weights."""

    @property
    def can_be_exact(self) -> bool:
        """Whether a run at rest can be continued bit for bit from its checkpoint."""

    @property
    def eval_episodes(self) -> int:
        """Of each evaluation: episodes, or held-out rows. 0: there is none."""

    def check(self) -> None:
        """Raises BadInput where the parts do not fit, before anything is begun."""

    def prepare(self, stop_requested: Callable[[], bool] = ...) -> None:
        """Makes, once per run directory, what the members load.

        Raises:
          RollcallError: when a stop was requested before it was made.
        """

    @property
    def reward(self) -> RewardEndpoint | None:
        """Where trajectories are scored; None: by the env or the task itself."""

    @property
    def reward_config(self) -> RewardConfig | None:
        """What the launcher is to provide as `reward`."""

    @property
    def asks_people(self) -> bool:
        """Whether the run waits for labels of people."""

    def with_reward(self, endpoint: RewardEndpoint) -> Parts:
        """These parts, once the reward service's address is known."""

    def scorer(self) -> TrajectoryScorer:
        """Only with a reward endpoint."""

    @property
    def preference_training(self) -> PreferenceTraining | None:
        """Of a run that trains reward models from preferences while its policy learns, with a reward endpoint."""

    def work(self) -> TaskSource: ...
    def actor(self, actor_id: str, source: Any) -> Any: ...
    def evaluator(self) -> Any: ...
    def learner(self, collective: Collective) -> Learner: ...


def scorer_of(endpoint: RewardEndpoint, mapping: ItemMapping) -> TrajectoryScorer:
    """Asks the service of that endpoint."""
    from rollcall.reward_service.client import RewardClient

    client = RewardClient(endpoint.url, endpoint.token or None)
    return TrajectoryScorer(client, mapping, model=endpoint.model, patience_s=endpoint.patience_s)


def parts_of(config: AnyConfig, run_directory: Path) -> Parts:
    """The parts of a run in its directory."""
    log = run_directory.resolve() / "logs" / "consumption.jsonl"
    if isinstance(config, LanguageConfig):
        from rollcall.deploy.kinds.language_parts import LanguageParts

        return LanguageParts(config, run_directory.resolve(), log)
    from rollcall.deploy.kinds.control_parts import ControlParts

    return ControlParts(config, run_directory.resolve(), log)
