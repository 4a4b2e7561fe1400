"""What outside actors and the gateway say to each other (docs/outside_actors.md): names, versions, and the two messages
that carry arrays. Must never know who speaks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import cast

from safetensors import SafetensorError
from safetensors.numpy import load, save

from rollcall.cluster.errors import WireError
from rollcall.cluster.messages.attempt import EpisodeStats, Timing
from rollcall.cluster.messages.experience import GymTrajectory
from rollcall.cluster.messages.weights import TensorSpec, Weights, new_buffer

PROTOCOL = 1
PROTOCOL_HEADER, ACTOR_HEADER, LEASE_HEADER = "Rollcall-Protocol", "Rollcall-Actor", "Rollcall-Lease"
JSON, TENSORS = "application/json", "application/octet-stream"
JOIN, LEAVE, WEIGHTS = "/v1/join", "/v1/leave", "/v1/weights"
LEASE, RENEW, TRAJECTORY = "/v1/lease", "/v1/renew", "/v1/trajectory"


@dataclass(frozen=True)
class OutsideExperience:
    """What an outside actor posts under a lease, as wire.py writes it."""

    trajectory: GymTrajectory
    episodes: tuple[EpisodeStats, ...] = ()  # that ended in it
    timing: Timing = field(default_factory=Timing)
    env_restarts: int = 0


def etag(weights: Weights) -> str:
    """Names one version for good: a restore begins a new epoch."""
    return f'"{weights.epoch}-{weights.version}"'


def weights_to_bytes(weights: Weights) -> bytes:
    """A safetensors file of the named tensors; what else is to be known stands in its metadata."""
    metadata = {
        "policy_id": weights.policy_id,
        "epoch": str(weights.epoch),
        "version": str(weights.version),
        "checksum": weights.checksum,
        "offsets": json.dumps({spec.name: spec.offset for spec in weights.index}),  # in the buffer of its dtype
        "sizes": json.dumps({dtype: buffer.size for dtype, buffer in weights.buffers.items()}),
    }
    return save(dict(weights.tensors()), metadata)


def weights_from_bytes(data: bytes) -> Weights:
    """Raises WireError: for bytes that are no weights, or not those that were published."""
    try:
        size = int.from_bytes(data[:8], "little")
        said = cast(dict[str, str], json.loads(data[8 : 8 + size])["__metadata__"])
        tensors = load(data)
        buffers = {dtype: new_buffer(dtype, length) for dtype, length in json.loads(said["sizes"]).items()}
        index = []
        for name, offset in json.loads(said["offsets"]).items():
            array = tensors[name]
            spec = TensorSpec(name, array.dtype.name, tuple(array.shape), offset)
            buffers[spec.dtype][offset : offset + spec.size] = array.reshape(-1)
            index.append(spec)
        epoch, version = int(said["epoch"]), int(said["version"])
        weights = Weights(said["policy_id"], epoch, version, tuple(index), buffers, said["checksum"])
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise WireError(f"no weights: {' '.join(str(error).split())[:200]}") from None
    if weights.compute_checksum() != weights.checksum:
        raise WireError(f"weights {epoch}-{version} are not those that were published: checksum differs")
    return weights
