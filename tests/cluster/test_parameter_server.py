"""The parameter server: newest version out, old epochs refused, bytes checked, waits bounded."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from rollcall.cluster.errors import ChecksumMismatch, StaleEpoch
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import Weights, pack_weights
from rollcall.cluster.parameter_server import ParameterServer


def weights(version: int, *, epoch: int = 1) -> Weights:
    tensors: dict[str, Array] = {"w": np.full((2, 3), version, np.float32), "n": np.array([version], np.int64)}
    return pack_weights("policy", epoch, version, tensors)


def test_what_comes_out_is_what_went_in() -> None:
    server = ParameterServer()
    assert server.publish(weights(3)) == 3
    found = server.latest(epoch=1, newer_than=-1, timeout_s=0)
    assert found is not None and found.version == 3
    tensors = dict(found.tensors())
    np.testing.assert_array_equal(tensors["w"], np.full((2, 3), 3, np.float32))
    np.testing.assert_array_equal(tensors["n"], [3])


def test_a_reader_that_has_the_newest_waits_for_the_next() -> None:
    server = ParameterServer()
    server.publish(weights(0))
    threading.Timer(0.1, server.publish, [weights(1)]).start()
    found = server.latest(epoch=1, newer_than=0, timeout_s=10)
    assert found is not None and found.version == 1


def test_a_wait_ends_at_its_deadline() -> None:
    server = ParameterServer()
    began = time.monotonic()
    assert server.latest(epoch=1, newer_than=-1, timeout_s=0.05) is None
    assert 0.04 < time.monotonic() - began < 2


def test_only_the_last_versions_are_kept() -> None:
    server = ParameterServer(keep=2)
    for version in range(4):
        server.publish(weights(version))
    assert list(server._versions) == [2, 3]


def test_a_version_that_is_not_newer_is_refused() -> None:
    server = ParameterServer()
    server.publish(weights(2))
    with pytest.raises(ValueError, match="version=2"):
        server.publish(weights(2))


def test_a_new_epoch_ends_the_old_one_and_may_begin_lower() -> None:
    server = ParameterServer()
    server.publish(weights(7, epoch=1))
    server.publish(weights(5, epoch=2))
    found = server.latest(epoch=2, newer_than=-1, timeout_s=0)
    assert found is not None and (found.epoch, found.version) == (2, 5)
    with pytest.raises(StaleEpoch):
        server.latest(epoch=1, newer_than=-1, timeout_s=0)
    with pytest.raises(StaleEpoch):
        server.publish(weights(8, epoch=1))


def test_bytes_that_changed_on_the_way_are_noticed() -> None:
    server = ParameterServer()
    good = weights(0)
    bad = {name: buffer.copy() for name, buffer in good.buffers.items()}
    bad["float32"][4] += 1
    server.publish(replace(good, buffers=bad))
    with pytest.raises(ChecksumMismatch, match="version 0"):
        server.latest(epoch=1, newer_than=-1, timeout_s=0)


def test_it_knows_which_reader_runs_which_version() -> None:
    server = ParameterServer()
    server.publish(weights(0))
    server.latest(epoch=1, newer_than=-1, timeout_s=0, reader="gym-0")
    server.publish(weights(1))
    server.latest(epoch=1, newer_than=-1, timeout_s=0, reader="gym-1")
    assert server.running() == {"gym-0": (1, 0), "gym-1": (1, 1)}
