"""The reward service of a run: the one at a URL, or a private one that is kept alive for as long as the run lasts.
Must never know what is scored."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rollcall.actors.trajectory_scoring import RewardEndpoint
from rollcall.cluster.errors import BadInput, BudgetSpent, RewardError, RewardUnavailable, RollcallError
from rollcall.cluster.loop.supervision import RestartBudget, SupervisionConfig
from rollcall.cluster.metrics.discovery import Announcement, announce
from rollcall.deploy.config.recipe.reward_config import MODEL, RewardConfig
from rollcall.deploy.drive.judge_engines import served_scorer
from rollcall.deploy.preferences.round_book import REWARD_MODELS
from rollcall.reward_service.client import RewardClient
from rollcall.reward_service.labelling.redis_queue import LabellingConfig
from rollcall.reward_service.labelling.routes import PAGE_PATH
from rollcall.reward_service.scheduling.batch_queue import BatchingConfig
from rollcall.reward_service.scorer import Taken
from rollcall.reward_service.service.auth import TOKEN_VARIABLE, client_token
from rollcall.reward_service.service.private import PrivateService, start_private
from rollcall.reward_service.service.service_config import ServiceConfig

__all__ = ["PAGE_PATH", "TOKEN_VARIABLE", "reward_endpoint"]

LOOK_S = 0.5  # between looks whether a private service lives
FIRST_CONTACT_S = 30.0

_log = logging.getLogger("rollcall")


@contextmanager
def reward_endpoint(
    config: RewardConfig,
    directory: Path,
    supervision: SupervisionConfig,
    tell: Callable[[str, str], None],
    stop_requested: Callable[[], bool],
    *,
    scored: Taken,
    labelling: LabellingConfig | None = None,
    exact: bool = False,
) -> Iterator[RewardEndpoint]:
    """Where to have trajectories scored; the service answers. `tell`: told of restarts. `scored`: what the run gives to
    score. `labelling`: how a private service also takes the labels of raters. `exact`: without a GPU it computes
    each score alone, since the last bits of a score depend on what else is in its batch, and that on who asks first.

    Raises:
      BadInput: when a private service's settings cannot be used, or its scorer does not take what the run gives.
      BudgetSpent: of the run, when no scores came: with the name of a private service's log.
      RewardError: when the service does not answer, or has no such model.
      RollcallError: when a stop was requested before it answered.
    """

    def look() -> None:
        if stop_requested():
            raise RollcallError("stopped while it waited for the reward service: nothing had begun")

    if config.url is not None:
        token = client_token()
        _check(config.url, token, config.model, scored, look)
        yield RewardEndpoint(config.url, token, config.model, config.patience_s)
        return
    assert config.scorer is not None
    directory, alone = directory.resolve(), exact and not torch.cuda.is_available()
    with served_scorer(config.scorer, directory, look) as scorer:
        settings = ServiceConfig(
            models={MODEL: scorer},
            model_roots=(directory / REWARD_MODELS,),
            labels=None if labelling is None else directory / "labels",
            labelling=labelling or LabellingConfig(),
            batching=BatchingConfig(max_batch_items=1) if alone else BatchingConfig(),
        )
        with _private_service(settings, config, directory, supervision, tell, look, scored) as endpoint:
            yield endpoint


@contextmanager
def _private_service(
    settings: ServiceConfig,
    config: RewardConfig,
    directory: Path,
    supervision: SupervisionConfig,
    tell: Callable[[str, str], None],
    look: Callable[[], None],
    scored: Taken,
) -> Iterator[RewardEndpoint]:
    service = start_private(settings, directory / "logs", look)
    announced = _announce(service, directory)
    keeper = _Keeper(service, supervision, tell, lambda: _announce(service, directory))
    try:
        _check(service.url, service.token.get_secret_value(), MODEL, scored, look)
        yield RewardEndpoint(service.url, service.token.get_secret_value(), MODEL, config.patience_s)
    except BudgetSpent as error:
        if error.reason != "unscored":
            raise
        line, separator, trace = str(error).partition("\n")
        said = f"{line}; what the scorer printed is in {service.log_path}"
        raise BudgetSpent(said + separator + trace, reason=error.reason) from None
    finally:
        keeper.stop()
        service.stop()
        if announced is not None:
            announced.withdraw()


def _announce(service: PrivateService, directory: Path) -> Announcement | None:
    """To Prometheus, as a part of the run; again where it comes back at another port."""
    labels = {"run": directory.name, "role": "reward_service"}
    return announce(directory.parent, f"{directory.name}.reward_service", service.url, labels)


def _check(url: str, token: str, model: str, scored: Taken, look: Callable[[], None]) -> None:
    with RewardClient(url, token or None) as client:
        client.wait_ready(FIRST_CONTACT_S, look)
        known = {info.name: info for info in client.models()}
    if model not in known:
        raise RewardUnavailable(f"{url} has no model {model!r}: it has {', '.join(known) or 'none'}; set reward.model")
    if scored not in (taken := known[model].takes):
        takes = " and ".join(taken) or "nothing"
        gives = "segments of steps" if scored == "segment" else "texts"
        raise BadInput(f"reward: a scorer of kind {known[model].kind} takes {takes}, and this run gives {gives}")


class _Stopping(Exception):
    """Nobody needs the service any more."""


class _Keeper:
    """Starts a service again that has died, at the same port, for as long as its budget lasts. Whoever waits for a
    score goes on waiting meanwhile."""

    def __init__(
        self,
        service: PrivateService,
        supervision: SupervisionConfig,
        tell: Callable[[str, str], None],
        started: Callable[[], object],
    ) -> None:
        """`started`: called each time it was started again."""
        self._service = service
        self._started = started
        self._tell = tell
        self._budget = RestartBudget(
            "the reward service",
            max_restarts=supervision.max_restarts,
            window_s=supervision.restart_window_s,
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="reward-service", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _look(self) -> None:
        if self._stopping.is_set():
            raise _Stopping

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_S):
            if self._service.alive():
                continue
            try:
                self._stopping.wait(self._budget.next_delay_s("it died"))
                self._look()
                self._tell("reward_service", "the reward service died and is started again")
                self._service.start(self._look)
                self._started()
            except _Stopping:
                return
            except RewardError as error:  # again, for as long as the budget lasts
                _log.warning("the reward service did not start: %s", error)
            except (BadInput, BudgetSpent) as error:
                _log.error("the reward service stays down: %s", error)
                return  # the run stops when its patience is over
