"""The preferences of one directory, opened by whoever serves them: the books on the disk, the queue in Redis. Must
never know who asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rollcall.cluster.store.redis_address import RedisConfig
from rollcall.cluster.store.store import open_store
from rollcall.reward_service.labelling.redis_queue import LabellingConfig
from rollcall.reward_service.labelling.store import PreferenceStore


@contextmanager
def open_labelling(directory: Path, config: LabellingConfig | None = None) -> Iterator[PreferenceStore]:
    """The preferences of a directory, with a Redis of their own unless redis.url is set; nobody else has it meanwhile.

    Raises:
      RunAlive: the directory is being served.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # A page waits for an outage by itself: a request must not hang for it.
    with open_store(RedisConfig(reconnect_timeout_s=5.0), directory) as store:
        namespace = store.key("labelling")
        yield PreferenceStore(store, namespace=namespace, directory=directory / "preferences", config=config)
