"""Judges that are models' directories: each is served, frozen, by an engine of this program's own while it is asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch

from rollcall.actors.engine.settings import EngineConfig
from rollcall.actors.engine.vllm_server import GPU_SHARE, NAME, VllmServer
from rollcall.reward_service.scorers.chat import KEY_VARIABLE
from rollcall.reward_service.scorers.judge_config import JudgeConfig
from rollcall.reward_service.scorers.scorer_config import EnsembleConfig, ScorerConfig, WeightedSumConfig

CONCURRENCY = 64  # requests that such an engine works on side by side
Look = Callable[[], None]


class Model(Protocol):
    """Who is asked over HTTP: a judge, a critic. Without a url its `model` is a directory."""

    @property
    def url(self) -> str | None: ...
    @property
    def model(self) -> str: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def concurrency(self) -> int: ...
    def model_copy(self, *, update: dict[str, Any]) -> Self: ...


Asked = TypeVar("Asked", bound=Model)


@contextmanager
def served(config: Asked, directory: Path, look: Look = lambda: None) -> Iterator[Asked]:
    """The judge as a server has it: where it names a model's directory, of an engine that is started here and ends
    afterwards; its log is in <directory>/logs. Its key goes to whoever asks by the environment, as every judge's.

    Raises:
      BadInput: when there is no such model.
      RollcallError: when the engine does not start.
    """
    with ExitStack() as stack:
        yield _served(config, directory, look, stack)


@contextmanager
def served_scorer(config: ScorerConfig, directory: Path, look: Look = lambda: None) -> Iterator[ScorerConfig]:
    """The same of every judge in a scorer."""
    with ExitStack() as stack:
        yield _with_judges(config, directory, look, stack)


def _with_judges(config: ScorerConfig, directory: Path, look: Look, stack: ExitStack) -> ScorerConfig:
    match config:
        case JudgeConfig():
            return _served(config, directory, look, stack)
        case WeightedSumConfig():
            parts = {
                name: part.model_copy(update={"scorer": _with_judges(part.scorer, directory, look, stack)})
                for name, part in config.parts.items()
            }
            return config.model_copy(update={"parts": parts})
        case EnsembleConfig():
            members = {name: _with_judges(one, directory, look, stack) for name, one in config.members.items()}
            return config.model_copy(update={"members": members})
        case _:
            return config


def _served(config: Asked, directory: Path, look: Look, stack: ExitStack) -> Asked:
    if config.url is not None:
        return config
    engine = EngineConfig(
        max_model_len=config.max_model_len,
        max_num_seqs=min(CONCURRENCY, config.concurrency),
        gpu_memory_utilization=GPU_SHARE if torch.cuda.is_available() else None,
        enforce_eager=not torch.cuda.is_available(),
    )
    name = f"judge_{Path(config.model).name}.log"
    key = os.environ.get(KEY_VARIABLE, "")
    server = VllmServer(Path(config.model), engine, log=directory / "logs" / name, key=key)
    os.environ[KEY_VARIABLE] = server.key  # of the environment that a private reward service inherits
    stack.callback(_forget, key)
    stack.callback(server.stop)  # however its start ends: whoever looks on may end it
    server.start(look)
    return config.model_copy(update={"url": server.url, "model": NAME})


def _forget(key: str) -> None:
    if key:
        os.environ[KEY_VARIABLE] = key
    else:
        os.environ.pop(KEY_VARIABLE, None)
