"""Records as bytes: every record comes back as it was, and whatever bytes come, what is raised is a WireError."""

from __future__ import annotations

import dataclasses
import json
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors.numpy import load, save

from rollcall.cluster.errors import WireError
from rollcall.cluster.messages import wire
from rollcall.cluster.messages.arrays import named_arrays
from rollcall.cluster.messages.attempt import (
    EngineLoad,
    EpisodeStats,
    Header,
    Produced,
    PromptPayload,
    SampleStats,
    Scoring,
    ShardPayload,
    Ticket,
    Timing,
)
from rollcall.cluster.messages.events import TicketFailed
from rollcall.cluster.messages.experience import GymTrajectory, LMTrajectory
from rollcall.cluster.messages.reports import EvalReport, StepOrder, StepReport
from rollcall.cluster.messages.steps import EnvSteps, SampledTokens, Unroll
from rollcall.cluster.messages.weights import Canary, Weights, pack_weights

unhurried = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])

numbers = st.integers(0, 2**64)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
floats = st.floats()
headers = st.builds(Header, numbers, numbers, numbers, texts, texts)
timings = st.builds(Timing, floats, floats, floats, floats, floats)
episodes = st.lists(st.builds(EpisodeStats, floats, numbers), max_size=3).map(tuple)
DTYPES = [np.dtype(name) for name in ("float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool")]


def arrays(*shape: int, dtype: Any = None) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    dtypes = st.sampled_from(DTYPES) if dtype is None else st.just(np.dtype(dtype))
    return dtypes.flatmap(lambda found: arrays_of.arrays(found, shape))


@st.composite
def gym_trajectories(draw: st.DrawFn) -> GymTrajectory:
    t, b, n = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    names = draw(st.lists(texts, min_size=1, max_size=2, unique=True))
    flags = arrays(t, b, dtype=bool)
    steps = EnvSteps(
        observations={name: draw(arrays(t, b, 2)) for name in names},
        actions=draw(arrays(t, b)),
        behaviour_logprobs=draw(arrays(t, b, dtype=np.float32)),
        rewards=draw(arrays(t, b, dtype=np.float32)),
        terminated=draw(flags),
        truncated=draw(flags),
        mask=draw(flags),
        episode_starts=draw(flags),
        action_mask=draw(st.none() | arrays(t, b, 4, dtype=bool)),
    )
    unroll = Unroll(
        steps=steps,
        last_observations={name: draw(arrays(b, 2)) for name in names},
        final_index=draw(arrays(n, 2, dtype=np.int64)),
        final_observations={name: draw(arrays(n, 2)) for name in names},
        initial_recurrent_state=draw(st.none() | arrays(1, b, 5, dtype=np.float32)),
    )
    return GymTrajectory(draw(headers), 1, 2, draw(numbers), unroll, draw(texts))


@st.composite
def lm_trajectories(draw: st.DrawFn) -> LMTrajectory:
    n, g = draw(st.integers(0, 6)), draw(st.integers(1, 3))
    return LMTrajectory(
        draw(headers),
        row=draw(numbers),
        sample_offsets=draw(arrays(g + 1, dtype=np.int64)),
        token_ids=draw(arrays(n, dtype=np.int32)),
        loss_mask=draw(arrays(n, dtype=bool)),
        tokens=SampledTokens(draw(arrays(n, dtype=np.float32)), draw(st.none() | arrays(n, dtype=np.float32))),
        version_spans=draw(arrays(2, 3, dtype=np.int64)),
        rewards=draw(arrays(g, dtype=np.float32)),
        finish_reasons=tuple(draw(st.lists(st.sampled_from(["stop", "length"]), max_size=3))),
        reward_model_version=draw(texts),
    )


@st.composite
def weights(draw: st.DrawFn) -> Weights:
    made = pack_weights("policy", draw(numbers), draw(numbers), {"a": draw(arrays(2, 3)), "b": draw(arrays(4))})
    canary = Canary(draw(arrays(3, dtype=np.int32)), draw(arrays(2, dtype=np.float32)), "float32")
    return dataclasses.replace(made, canary=draw(st.none() | st.just(canary)))


samples = st.builds(
    SampleStats, floats, st.booleans(), st.booleans(), numbers, st.booleans(), st.dictionaries(texts, floats), texts
)
RECORDS: dict[type, st.SearchStrategy[Any]] = {
    Ticket: st.builds(
        Ticket,
        headers,
        numbers,
        numbers,
        numbers,
        st.builds(ShardPayload, numbers, numbers, st.sampled_from(["fragment", "episode", "prompt"]))
        | st.builds(PromptPayload, numbers, numbers, numbers),
        floats,
    ),
    Produced: st.builds(
        Produced,
        headers,
        numbers,
        numbers,
        timings,
        num_tokens=numbers,
        episodes=episodes,
        samples=st.lists(samples, max_size=2).map(tuple),
        version_tokens=st.lists(st.tuples(numbers, numbers), max_size=2).map(tuple),
        engine=st.none() | st.builds(EngineLoad, numbers, floats, floats, floats, numbers, numbers),
        scoring=st.none() | st.builds(Scoring, texts, floats, floats),
    ),
    TicketFailed: st.builds(TicketFailed, headers, texts, texts, st.booleans(), st.booleans()),
    StepOrder: st.builds(StepOrder, numbers, numbers, floats, st.none() | texts.map(lambda text: Path("a") / text)),
    StepReport: st.builds(
        StepReport, numbers, numbers, st.booleans(), floats, floats, floats, st.dictionaries(texts, floats)
    ),
    EvalReport: st.builds(
        EvalReport, texts, floats, floats, numbers, st.just((1.0, -0.0)), st.just((3, 4)), numbers, st.none() | numbers
    ),
    GymTrajectory: gym_trajectories(),
    LMTrajectory: lm_trajectories(),
    Weights: weights(),
}
any_record = st.sampled_from(list(RECORDS)).flatmap(lambda kind: RECORDS[kind])
one_step = gym_trajectories().filter(lambda item: item.unroll.shape == (2, 2))


def complaint(data: bytes, kind: type) -> str:
    """Of bytes that may be a record; any other exception than WireError comes through."""
    try:
        wire.from_bytes(data, kind)
    except WireError as error:
        return str(error)
    return ""


def plain(record: Any) -> Any:
    """Without arrays, for comparing; NaN equals itself here."""
    return json.dumps(wire._plain(record, "", {}))


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@unhurried
@given(st.data())
def test_every_record_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    record = data.draw(RECORDS[kind])
    found: object = wire.from_bytes(wire.to_bytes(record), kind)
    assert type(found) is kind and plain(found) == plain(record)
    for (name, array), (other, expected) in zip(named_arrays(found), named_arrays(record), strict=True):
        assert name == other and (array.dtype, array.shape) == (expected.dtype, expected.shape), name
        assert array.tobytes() == expected.tobytes(), name
    if isinstance(record, GymTrajectory | LMTrajectory):
        assert isinstance(found, GymTrajectory | LMTrajectory)
        assert found.digest() == record.digest()
        assert hash(found.header) == hash(record.header)


@unhurried
@given(gym_trajectories())
def test_the_names_of_observations_keep_their_order(record: GymTrajectory) -> None:
    found: object = wire.from_bytes(wire.to_bytes(record), GymTrajectory)
    assert isinstance(found, GymTrajectory)
    assert list(found.steps.observations) == list(record.steps.observations)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(any_record, st.data())
def test_bytes_that_were_changed_give_a_record_or_a_wire_error(record: Any, data: st.DataObject) -> None:
    sound = wire.to_bytes(record)
    at = data.draw(st.integers(0, len(sound) - 1))
    damaged = data.draw(
        st.sampled_from(
            [
                sound[:at],
                sound[at:],
                sound + sound[:at],
                sound[:at] + bytes([data.draw(st.integers(0, 255))]) + sound[at + 1 :],
                sound[:at] + data.draw(st.binary(max_size=20)) + sound[at:],
            ]
        )
    )
    assert len(complaint(damaged, type(record))) < 400


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_bytes_of_anything_give_a_wire_error(data: bytes) -> None:
    for prefixed in (data, len(data).to_bytes(8, "little") + data):
        with pytest.raises(WireError):
            wire.from_bytes(prefixed, Ticket)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=300)
@given(json_values, st.data())
def test_fields_of_another_form_are_named(value: Any, data: st.DataObject) -> None:
    sound = wire.to_bytes(TICKET)
    tree = json.loads(wire._metadata(sound)["fields"])
    name = data.draw(st.sampled_from(sorted(tree)))
    said = complaint(framed({**tree, name: value}), Ticket)
    assert not said or f"Ticket.{name}" in said


TICKET = Ticket(Header(1, 1, 1, "policy"), 7, 0, 0, ShardPayload(0, 0, "fragment"), 60.0)
SCORE = Produced(Header(1, 1, 1), 0, 0, Timing())


def framed(tree: Any, *, version: str = "1", record: str = "Ticket", tensors: dict[str, Any] | None = None) -> bytes:
    return save(tensors or {}, {"rollcall_version": version, "record": record, "fields": json.dumps(tree)})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 bytes: not a record"),
        (wire.to_bytes(TICKET)[:100], "truncated: 100 bytes"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "a header of 1099511627776 bytes; at most"),
        (save({"a": np.zeros(2)}), "no metadata: not a record of Rollcall's"),
        (framed({}, version="2"), "of version '2': this version of Rollcall reads 1"),
        (framed({}, record="os.system"), "a 'os.system', where a Ticket was expected"),
        (wire.to_bytes(SCORE), "a 'Produced', where a Ticket was expected"),
        (framed({}), "Ticket: has no header"),
        (framed({"what": 1}), "Ticket: has 'what', which a Ticket has not"),
        (framed([]), "Ticket: no fields of a Ticket"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # safetensors orders its metadata as it likes
)
def test_the_error_says_what_is_wrong(data: bytes, said: str) -> None:
    with pytest.raises(WireError) as raised:
        wire.from_bytes(data, Ticket)
    assert said in str(raised.value)


def test_tensors_must_be_those_that_the_record_has_and_of_a_dtype_that_numpy_has() -> None:
    weights = pack_weights("policy", 1, 1, {"a": np.arange(6, dtype=np.float32)})
    sound = wire.to_bytes(weights)
    tree = json.loads(wire._metadata(sound)["fields"])
    tensors = {**load(sound), "more": np.zeros(1)}
    with pytest.raises(WireError, match="belongs nowhere: 'more'"):
        wire.from_bytes(framed(tree, record="Weights", tensors=tensors), Weights)
    with pytest.raises(WireError, match=r"Weights\.buffers\.float32: no tensor stands for it"):
        wire.from_bytes(framed(tree, record="Weights"), Weights)
    end = 8 + int.from_bytes(sound[:8], "little")
    header = sound[8:end].replace(b'"dtype":"F32","shape":[6]', b'"dtype":"BF16","shape":[12]')
    with pytest.raises(WireError, match=r"dtype 'BF16', which numpy has not"):
        wire.from_bytes(len(header).to_bytes(8, "little") + header + sound[end:], Weights)
    with pytest.raises(ValueError, match=r"buffers\.names is an array of object"):
        wire.to_bytes(dataclasses.replace(weights, buffers={"names": np.array([None])}))


def test_one_of_several_kinds_is_what_the_bytes_say() -> None:
    failed = TicketFailed(Header(1, 2, 3), "deadline", "late", False)
    for record in (failed, SCORE):
        assert wire.from_bytes(wire.to_bytes(record), Produced, TicketFailed) == record


def test_a_field_that_is_younger_than_the_bytes_has_its_default() -> None:
    tree = json.loads(wire._metadata(wire.to_bytes(SCORE))["fields"])
    del tree["scoring"], tree["env_restarts"]
    assert wire.from_bytes(framed(tree, record="Produced"), Produced) == SCORE


def test_speed_beside_pickle(capsys: pytest.CaptureFixture[str]) -> None:
    """Told, not judged: machines differ."""
    rng = np.random.default_rng(0)
    record = pack_weights("policy", 1, 1, {str(i): rng.random((256, 1024), np.float32) for i in range(16)})
    ways = {
        "wire": (wire.to_bytes, lambda data: wire.from_bytes(data, Weights)),
        "pickle": (lambda item: pickle.dumps(item, protocol=5), pickle.loads),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(5):
        for name, (write, read) in ways.items():
            began = time.perf_counter()
            assert read(write(record)).version == 1
            seconds[name].append(time.perf_counter() - began)
    best = {name: min(times) for name, times in seconds.items()}
    with capsys.disabled():
        print(f"\n16 MiB there and back: {best}, wire / pickle {best['wire'] / best['pickle']:.2f}")
