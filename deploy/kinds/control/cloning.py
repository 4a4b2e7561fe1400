"""What a control run's policy imitates before it learns by itself: behavioural cloning, as a run of its own inside the
run's directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from rollcall.actors.control.evaluation_config import EvalConfig
from rollcall.cluster.checkpoint import latest_checkpoint
from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import read_json
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.recipe.offline_config import OfflineConfig, RecordedDataConfig
from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.kinds.control.offline_kind import OFFLINE
from rollcall.deploy.kinds.control.offline_run import OfflineControlRun
from rollcall.deploy.kinds.kind import NestedRun
from rollcall.learners.algorithms.control.imitation.bc_config import BCConfig
from rollcall.learners.loop.config import LearnerConfig

WARM_START = "warm_start"  # of a run directory: the run in which its policy imitates


def check(config: RunConfig, run_directory: Path) -> None:
    """Raises BadInput: where the policy cannot imitate what it is to."""
    wanted = _config(config)
    for problem in OFFLINE.problems(wanted):
        raise BadInput(f"policy.warm_start: {'.'.join(problem.path)}: {problem.text}")
    try:
        for _ in OfflineControlRun(wanted, run_directory / WARM_START).preparations():
            raise AssertionError("there is nothing before it")
    except BadInput as error:
        raise BadInput(f"policy.warm_start: {error}") from None


def cloning(config: RunConfig, run_directory: Path) -> NestedRun:
    """To be made. One that was cut off begins anew: it is short."""
    directory = run_directory / WARM_START
    shutil.rmtree(directory, ignore_errors=True)
    return NestedRun(OFFLINE, _config(config), directory)


def clone_of(run_directory: Path) -> Path | None:
    """The checkpoint with the clone, once it is made."""
    directory = run_directory / WARM_START
    if read_json(directory / "summary.json").get("status") != "completed":
        return None
    return latest_checkpoint(directory)[0]


def _config(config: RunConfig) -> OfflineConfig:
    warm_start = config.policy.warm_start
    assert warm_start is not None, "asked for"
    return OfflineConfig(
        name=WARM_START,
        seed=derive_seed(config.seed, WARM_START),
        env=config.env,
        data=RecordedDataConfig(train=warm_start.data, episodes=warm_start.episodes, eval_fraction=0.0),
        algorithm=BCConfig(loss=warm_start.loss),
        policy=config.policy.model_copy(update={"warm_start": None, "normalise_rewards": False}),
        batch_size=warm_start.batch_size,
        total_learner_steps=warm_start.steps,
        eval=EvalConfig(episodes=0),
        learner=LearnerConfig(
            learning_rate=warm_start.learning_rate, device=config.learner.device, threads=config.learner.threads
        ),
    )
