"""The models that are served: built aside, put in place at once, and closed when nobody needs them any more."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.protocol import ModelInfo
from rollcall.reward_service.scheduling.batch_queue import BatchingConfig
from rollcall.reward_service.scheduling.batcher import Batcher, Finished
from rollcall.reward_service.scheduling.metrics import ServiceMetrics
from rollcall.reward_service.scheduling.refusals import Refused
from rollcall.reward_service.scorer import Scorer
from rollcall.reward_service.scorers.scorer_config import ScorerConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MAX_MODELS = 32  # names become labels of metrics, and each has a thread
_SOON_S = 2  # Retry-After while models are being built

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Makers:
    """How scorers come about."""

    build: Callable[[ScorerConfig, str], Scorer]  # (config, name)
    replaced: Callable[
        [ScorerConfig | None, Path], ScorerConfig
    ]  # (the config in place, a path) -> the config of its successor


@dataclass(eq=False)
class Served:
    """One version of one model, in use."""

    name: str
    config: ScorerConfig
    scorer: Scorer
    version: str
    batcher: Batcher
    pins: int = 0
    retired: bool = False

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """It stays open meanwhile, though another may take its place."""
        self.pins += 1
        try:
            yield
        finally:
            self.pins -= 1
            self._leave()

    def retire(self) -> None:
        self.retired = True
        self._leave()

    def _leave(self) -> None:
        if self.retired and self.pins == 0:
            self.batcher.close()


class Registry:
    """Lives on the event loop; scorers are built in threads of their own."""

    def __init__(
        self,
        configs: Mapping[str, ScorerConfig],
        makers: Makers,
        *,
        default: str | None,
        roots: Sequence[Path],
        batching: BatchingConfig,
        metrics: ServiceMetrics,
        finished: Callable[[Finished], None],
    ) -> None:
        self._configs, self._makers, self._default = dict(configs), makers, default
        self._roots = [root.resolve() for root in roots]
        self._batching, self._metrics, self._finished = batching, metrics, finished
        self._served: dict[str, Served] = {}
        self._retired: list[Served] = []
        self._loading: set[str] = set(configs)

    @property
    def default(self) -> str | None:
        """Who scores requests that name no model: the one configured, else the only one there is."""
        if self._default is not None:
            return self._default
        return next(iter(self._configs)) if len(self._configs) == 1 else None

    async def build_all(self) -> None:
        """Raises:
        BadInput: in one line, when a model of the configuration cannot be built.
        """
        for name, config in list(self._configs.items()):
            self._place(name, config, await self._build(config, name))
            self._loading.discard(name)

    def find(self, name: str | None) -> Served:
        """Raises:
        Refused: there is none of that name, or not yet, or it is stuck.
        """
        wanted = name if name is not None else self.default
        if wanted is None:
            known = ", ".join(sorted(self._configs)) or "none"
            raise Refused("unknown_model", f"the request names no model, and there is no default; there are: {known}")
        served = self._served.get(wanted)
        if served is None:
            if wanted in self._loading:
                raise Refused("loading", f"model {wanted} is being loaded", retry_after_s=_SOON_S)
            known = ", ".join(sorted(self._configs)) or "none"
            raise Refused("unknown_model", f"there is no model {wanted[:64]!r}; there are: {known}")
        stuck_s = served.batcher.stuck_s(time.monotonic())
        if stuck_s is not None:
            text = f"model {wanted} has computed one batch for {stuck_s:.0f} s and takes no more work"
            raise Refused("stuck", text, retry_after_s=_SOON_S)
        return served

    def not_ready(self) -> str | None:
        """Why the service is not ready, if it is not."""
        missing = sorted(self._loading - set(self._served))
        if missing:
            return f"loading {', '.join(missing)}"
        now = time.monotonic()
        stuck = [name for name, served in self._served.items() if served.batcher.stuck_s(now) is not None]
        return f"stuck: {', '.join(stuck)}" if stuck else None

    def infos(self) -> tuple[ModelInfo, ...]:
        return tuple(self._info(served) for served in self._served.values())

    async def load(self, name: str, path: str) -> ModelInfo:
        """Builds a model from a directory, aside, and then puts it in the place of the old one, if there is one.

        Raises:
          Refused: it cannot be loaded; the old one stays.
        """
        old = self._configs.get(name)
        self._check_place(name, old)
        self._loading.add(name)
        try:
            config = self._makers.replaced(old, self._below_a_root(path))
            scorer = await self._build(config, name)
        except Refused:
            self._metrics.swaps.labels(self._label(name), "refused").inc()
            raise
        except Exception as error:
            self._metrics.swaps.labels(self._label(name), "failed").inc()
            _log.warning("model %s was not loaded from %s: %s", name, path, error)
            text = " ".join(str(error).split())[:500]
            what = text if isinstance(error, BadInput) else f"{type(error).__name__}: {text}"
            raise Refused("load_failed", f"model {name} was not loaded, and what was there stays: {what}") from error
        finally:
            self._loading.discard(name)
        served = self._place(name, config, scorer)
        self._metrics.swaps.labels(name, "done").inc()
        return self._info(served)

    def close(self, timeout_s: float) -> bool:
        """Ends every worker that ends in time; whether all did."""
        deadline = time.monotonic() + timeout_s
        everyone = [*self._served.values(), *self._retired]
        for served in everyone:
            served.batcher.close()
        ended = [served.batcher.join(max(0.0, deadline - time.monotonic())) for served in everyone]
        return all(ended)

    def _check_place(self, name: str, old: ScorerConfig | None) -> None:
        if not NAME.fullmatch(name):
            raise Refused("load_failed", "a model's name is 1 to 64 letters, digits, '.', '_' and '-'")
        if name in self._loading:
            raise Refused("load_conflict", f"model {name} is being loaded already", retry_after_s=1)
        if old is not None and old.kind != "reward_model":
            raise Refused("load_conflict", f"model {name} is a {old.kind}: only reward models are loaded from a path")
        if old is None and len(self._configs) >= MAX_MODELS:
            raise Refused("load_conflict", f"there are {MAX_MODELS} models already")

    def _below_a_root(self, path: str) -> Path:
        """The directory itself, symbolic links followed. What lies elsewhere is not told from what does not exist."""
        for root in self._roots:
            try:
                found = (root / path).resolve(strict=True)
            except (OSError, RuntimeError, ValueError):  # not there, links in a circle, a NUL in the name
                continue
            if found.is_relative_to(root) and found.is_dir():
                return found
        raise Refused("load_failed", f"{path[:200]!r} is no directory below one of the service's model roots")

    async def _build(self, config: ScorerConfig, name: str) -> Scorer:
        """In a thread that nobody waits for at the end: a model that never loads must not keep the service alive."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Scorer] = loop.create_future()

        def settle(scorer: Scorer | None, error: Exception | None) -> None:
            if future.done():  # nobody waits any more
                if scorer is not None:
                    scorer.close()
            elif error is not None:
                future.set_exception(error)
            elif scorer is not None:
                future.set_result(scorer)

        def work() -> None:
            scorer, failure = None, None
            try:
                scorer = self._makers.build(config, name)
            except Exception as error:
                failure = error
            try:
                loop.call_soon_threadsafe(settle, scorer, failure)
            except RuntimeError:
                _log.warning("model %s was built after the end", name)

        threading.Thread(target=work, name=f"build-{name}", daemon=True).start()
        return await future

    def _place(self, name: str, config: ScorerConfig, scorer: Scorer) -> Served:
        """One assignment: a request finds the old one or the new one."""
        batcher = Batcher(name, scorer, self._batching, metrics=self._metrics, finished=self._finished)
        served = Served(name, config, scorer, scorer.version, batcher)
        old, self._served[name] = self._served.get(name), served
        self._configs[name] = config
        self._metrics.models.labels(name, served.version, config.kind).set(1)
        self._metrics.loaded_at.labels(name).set_to_current_time()
        if old is not None:
            if (old.version, old.config.kind) != (served.version, config.kind):
                self._metrics.models.remove(name, old.version, old.config.kind)
            self._retired = [one for one in self._retired if not one.batcher.join(0.0)]
            self._retired.append(old)
            old.retire()
        _log.info("model %s is %s", name, served.version)
        return served

    def _info(self, served: Served) -> ModelInfo:
        taken = tuple(kind for kind in ("text", "segment") if kind in served.scorer.takes)
        kind = served.config.kind
        is_default = served.name == self.default
        return ModelInfo(name=served.name, kind=kind, version=served.version, takes=taken, is_default=is_default)

    def _label(self, name: str) -> str:
        """A name that may be a label: those that were refused a place are not."""
        return name if name in self._configs else "new"
