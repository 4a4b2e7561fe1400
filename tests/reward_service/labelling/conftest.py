"""One redis-server for all tests of labels, and a labelling service on it for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rollcall.cluster.store.redis_server import PrivateRedis
from tests.reward_service.labelling.label_service import Service, labelling_service, private_redis


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    with private_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def service(redis: PrivateRedis, tmp_path: Path) -> Iterator[Service]:
    with labelling_service(redis, tmp_path) as service:
        yield service
