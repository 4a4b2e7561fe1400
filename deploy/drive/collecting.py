"""What a run that collects its own data has around it while it trains: a reward service, where its samples are scored,
and an end to its engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from rollcall.cluster.errors import RollcallError
from rollcall.deploy.config.recipe.constitutional_config import CriticConfig
from rollcall.deploy.drive.judge_engines import served
from rollcall.deploy.drive.records import RunRecorder
from rollcall.deploy.drive.reward_launch import reward_endpoint
from rollcall.deploy.kinds.kind import CollectingRun, StoredRun


@contextmanager
def collecting(run: StoredRun, made: Any, recorder: RunRecorder, stop_requested: Callable[[], bool]) -> Iterator[None]:
    """Raises BadInput, RewardError: as reward_endpoint."""
    members: CollectingRun = made

    def look() -> None:
        if stop_requested():
            raise RollcallError("stopped while an engine was started: nothing of it is lost")

    with ExitStack() as stack:
        endpoint, config = None, members.reward_config
        if config is not None:
            endpoint = stack.enter_context(
                reward_endpoint(
                    config, run.directory, run.config.supervision, recorder.on_event, stop_requested, scored="text"
                )
            )
        stack.callback(members.close)

        def serve(critic: CriticConfig) -> CriticConfig:
            return stack.enter_context(served(critic, run.directory, look))

        members.begin_collecting(endpoint, stop_requested, serve)
        yield
