"""Weights on their way from a learner to an engine through vLLM's own transfer engines: the real ones of both sides, on
a machine without GPU. What stands in: CUDA's memory handles, and NCCL's broadcast."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from rollcall.actors.engine.vllm_weight_sender import Transport, WeightSender
from rollcall.cluster.errors import RollcallError
from rollcall.deploy.runtimes.on_ray import weights
from rollcall.deploy.runtimes.on_ray.weights import ControlCalls
from tests.needs import require

require("vllm")
pytestmark = [  # vLLM's own, while parts of it are imported
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.distributed.reduce_op` is deprecated:FutureWarning"),
]
WAIT_S = 30.0


class StandInGroup:
    """Two ends of a communicator, as far as vLLM's engines use one."""

    def __init__(self) -> None:
        self.sent: queue.Queue[torch.Tensor | None] = queue.Queue()
        self.taken: queue.Queue[bool] = queue.Queue()

    def end(self, rank: int) -> SimpleNamespace:
        def broadcast(tensor: torch.Tensor, src: int, stream: Any = None) -> None:
            if rank == src:
                self.sent.put(tensor.clone())
                if not self.taken.get(timeout=WAIT_S):
                    raise RuntimeError("NCCL: the communicator was aborted")
            else:
                received = self.sent.get(timeout=WAIT_S)
                assert received is not None
                tensor.copy_(received)
                self.taken.put(True)

        return SimpleNamespace(broadcast=broadcast, destroy=lambda: self.taken.put(False))


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.weight_transfer import ipc_engine, nccl_engine, packed_tensor

    def export(tensor: torch.Tensor) -> tuple[None, tuple[Any, ...]]:
        return None, (tensor, None, None, None, None, None, 0)

    group = StandInGroup()
    stream = SimpleNamespace(synchronize=lambda: None)
    for owner, name, value in (
        (ipc_engine, "reduce_tensor", export),
        (ipc_engine, "rebuild_cuda_tensor", lambda tensor, *_: tensor.clone()),
        (nccl_engine, "open_trainer_endpoint", lambda info: group.end(0)),
        (nccl_engine, "worker_init_process_group", lambda info, parallel: group.end(1)),
        (packed_tensor, "_get_streams", lambda device, count: (stream,) * count),
        (torch.cuda, "stream", lambda _: contextlib.nullcontext()),
        (torch.cuda, "get_device_properties", lambda device=None: SimpleNamespace(uuid="GPU-0")),
        (torch.cuda, "ipc_collect", lambda: None),
        (torch.accelerator, "current_device_index", lambda: 0),
        (torch.accelerator, "synchronize", lambda device=None: None),
    ):
        monkeypatch.setattr(owner, name, value)


class Engine:
    """The side of a generation engine: vLLM's own transfer engine over a small model."""

    def __init__(self, transport: Transport) -> None:
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

        model = nn.ModuleDict({"first": nn.Linear(3, 2), "second": nn.Linear(2, 5, bias=False)})
        self.model = cast(Any, model)
        self.model.load_weights = self._load_weights
        config: Any = SimpleNamespace(parallel_config=None, model_config=None)
        settings = WeightTransferConfig(backend=transport)
        engine = WeightTransferEngineFactory.create_engine(settings, config, torch.device("cpu"), self.model)
        self._engine = cast(Any, engine)
        # How a model of vLLM's layers is loaded anew is tested with the real one, in tests/actors/language.
        self._engine.start_weight_update = self._engine.finish_weight_update = lambda: None
        self.calls: list[str] = []

    def control(self, method: str, arguments: Mapping[str, Any]) -> None:
        self.calls.append(method)
        if method == "init_weight_transfer_engine":
            self._engine.init_transfer_engine(self._engine.parse_init_info(arguments["init_info"]))
        else:
            getattr(self._engine, method)(**arguments)

    def _load_weights(self, weights: Any) -> None:
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in weights:
                parameters[name].copy_(tensor)


class Control:
    """The learner's side of ControlCalls, without Ray in between."""

    def __init__(self, calls: ControlCalls) -> None:
        self._calls = calls

    def call(self, method: str, arguments: Mapping[str, Any]) -> None:
        self._calls.put(method, arguments).result(timeout=WAIT_S)


@pytest.fixture
def learner() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield executor


def sending(learner: ThreadPoolExecutor, work: Callable[[], Any]) -> Any:
    """As a reference of Ray's to what a learner process was asked for."""
    future = learner.submit(work)
    return SimpleNamespace(future=lambda: future)


def never() -> None:
    raise AssertionError("this engine's process should have stayed")


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_each_version_is_in_the_engines_model_when_it_is_said_to_be(
    transport: Transport, learner: ThreadPoolExecutor
) -> None:
    engine, calls = Engine(transport), ControlCalls(never)
    senders: list[WeightSender] = []
    for version in (1, 2):
        tensors = {name: torch.randn(tensor.shape) for name, tensor in engine.model.named_parameters()}

        def send(version: int = version, tensors: dict[str, torch.Tensor] = tensors) -> tuple[int, int]:
            if not senders:
                senders.append(WeightSender(transport, Control(calls), address=("127.0.0.1", 1)))
            senders[0].send(tensors)
            return 7, version

        assert calls.serve(sending(learner, send), engine.control) == (7, version)
        for name, tensor in engine.model.named_parameters():
            assert torch.equal(tensor, tensors[name]), name
    update = ["start_weight_update", "update_weights", "finish_weight_update"]
    assert engine.calls == ["init_weight_transfer_engine", *update, *update]


@pytest.mark.usefixtures("stand_ins")
def test_an_engine_that_refuses_its_weights_ends_the_sending_too(learner: ThreadPoolExecutor) -> None:
    """Of NCCL the other end is in a broadcast then, which waits for a receiver that will not come."""
    engine, calls = Engine("nccl"), ControlCalls(never)

    def refuse(method: str, arguments: Mapping[str, Any]) -> None:
        if method == "update_weights":
            raise RuntimeError("no such parameter")
        engine.control(method, arguments)

    def send() -> None:
        WeightSender("nccl", Control(calls), address=("127.0.0.1", 1)).send({"first.weight": torch.zeros(2, 3)})

    with pytest.raises(RuntimeError, match=r"no such parameter|aborted"):
        calls.serve(sending(learner, send), refuse)


def test_a_process_leaves_when_the_learner_dies_that_it_receives_from() -> None:
    """NCCL's receive never returns then, and the model is half loaded: the actor is started anew."""
    left, receiving = threading.Event(), threading.Event()
    calls = ControlCalls(left.set)
    learner: Future[Any] = Future()

    def receive(method: str, arguments: Mapping[str, Any]) -> None:
        receiving.set()
        assert left.wait(WAIT_S)  # where the real one ends the process

    def serve() -> None:
        with pytest.raises(RuntimeError, match="the learner died"):
            calls.serve(SimpleNamespace(future=lambda: learner), receive)

    calls.put("update_weights", {})
    thread = threading.Thread(target=serve)
    thread.start()
    assert receiving.wait(WAIT_S)
    learner.set_exception(RuntimeError("the learner died"))
    assert left.wait(WAIT_S)
    thread.join(WAIT_S)


def test_a_call_of_a_learner_that_is_dead_already_is_not_begun() -> None:
    calls = ControlCalls(never)
    dead: Future[Any] = Future()
    dead.set_exception(RuntimeError("the learner died"))
    calls.put("update_weights", {})
    begun: list[str] = []
    with pytest.raises(RuntimeError, match="the learner died"):
        calls.serve(SimpleNamespace(future=lambda: dead), lambda method, arguments: begun.append(method))
    assert begun == []


def test_a_learner_that_sends_nothing_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SEND_TIMEOUT_S", 0.1)
    silent: Future[Any] = Future()
    with pytest.raises(RollcallError, match="has sent nothing of its weights for 0 s"):
        ControlCalls(never).serve(SimpleNamespace(future=lambda: silent), lambda method, arguments: None)


def test_between_two_calls_the_learners_death_is_an_error_like_any_other() -> None:
    calls = ControlCalls(never)
    learner: Future[Any] = Future()
    calls.put("start_weight_update", {}).add_done_callback(
        lambda _: learner.set_exception(RuntimeError("the learner died"))
    )
    with pytest.raises(RuntimeError, match="the learner died"):
        calls.serve(SimpleNamespace(future=lambda: learner), lambda method, arguments: None)
