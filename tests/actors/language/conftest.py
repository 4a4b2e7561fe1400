"""One real vLLM engine per model for the whole session (each takes most of a minute to start), and the trainer's side
of the same model, which every token that the engine samples is held against."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from rollcall.actors.engine.requests import Completion
from rollcall.actors.engine.settings import EngineConfig
from rollcall.actors.engine.vllm_engine import VllmEngine
from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.arithmetic import Arithmetic, ArithmeticConfig
from rollcall.actors.tasks.calculator import Calculator, CalculatorConfig
from rollcall.cluster.errors import StaleEpoch
from rollcall.cluster.messages.attempt import Header, PromptPayload, Ticket
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.seeds import derive_seed
from rollcall.learners.batches.token_batch import TokenRows
from rollcall.learners.models.flat import module_weights
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.tiny_model import write_tiny_model
from rollcall.learners.models.language.token_policy import TokenPolicy, load_policy_model
from tests.needs import require

SAMPLING = SamplingConfig(temperature=0.7, top_p=0.9, max_tokens=40)
# 256, not less: vLLM's prefix cache on CPUs keeps blocks of 128 tokens, and a shorter prompt would never meet it.
ENGINE = EngineConfig(max_model_len=256, max_num_seqs=64, kv_cache_gib=1)
ENGINE_TIMEOUT_S = 900  # of a test, the start of an engine on a busy machine (with nothing compiled yet) included


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(ENGINE_TIMEOUT_S))


@contextmanager
def vllms_own_warnings() -> Iterator[None]:
    """What vLLM, and torch on its behalf, warn of while they are imported and started, and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="`torch.jit.script_method` is deprecated", category=DeprecationWarning
        )
        warnings.filterwarnings("ignore", message="`torch.distributed.reduce_op` is deprecated", category=FutureWarning)
        yield


@dataclass(frozen=True)
class Said:
    """What the trainer says of sampled tokens, each [S]."""

    logprobs: torch.Tensor
    outside: torch.Tensor
    edge: torch.Tensor  # how near a partial sum of probabilities is to top_p: of a nucleus that ends there, float
    # arithmetic decides


@dataclass
class Trainer:
    """The learner's copy of an engine's model."""

    policy: TokenPolicy
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def move(self, scale: float = 0.05) -> None:
        """A random update of every parameter."""
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=self.generator))

    def weights(self, version: int, *, epoch: int = 1) -> Weights:
        """As the learner publishes them, and as the object store shows them: read-only."""
        weights = module_weights({"policy": self.policy}, "policy", epoch=epoch, version=version)
        for buffer in weights.buffers.values():
            buffer.setflags(write=False)
        return weights

    @torch.no_grad()
    def says(self, sequences: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> Said:
        """Of (tokens, which of them were sampled), sequence after sequence."""
        width = max(len(tokens) for tokens, _ in sequences)
        token_ids = torch.zeros(len(sequences), width, dtype=torch.int64)
        predictors, targets = [], []
        for row, (tokens, sampled) in enumerate(sequences):
            token_ids[row, : len(tokens)] = torch.tensor(tokens)
            places = [place for place, is_sampled in enumerate(sampled) if is_sampled]
            predictors += [row * width + place - 1 for place in places]
            targets += [tokens[place] for place in places]
        rows = TokenRows(token_ids, torch.tensor(predictors), torch.tensor(targets))
        result = self.policy(rows)
        model: Any = self.policy.model
        logits = model(input_ids=token_ids).logits.flatten(0, 1)[rows.predictors].double() / SAMPLING.temperature
        mass = logits.softmax(-1).sort(dim=-1, descending=True).values.cumsum(-1)
        return Said(result.logprobs, result.outside, (mass - SAMPLING.top_p).abs().amin(-1))

    def greedy(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The most probable tokens, one after the other, without a cache of keys and values."""
        model: Any = self.policy.model
        tokens = list(prompt)
        with torch.no_grad():
            for _ in range(num_tokens):
                tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        return tokens[len(prompt) :]


@dataclass
class Source:
    """A WeightsSource that says what it was given, and refuses epochs that have ended."""

    published: dict[int, list[Weights]] = field(default_factory=dict)  # by epoch
    ended: set[int] = field(default_factory=set)

    def publish(self, weights: Weights) -> None:
        self.published.setdefault(weights.epoch, []).append(weights)

    def latest(self, *, epoch: int, newer_than: int, timeout_s: float, reader: str = "") -> Weights | None:
        if epoch in self.ended:
            raise StaleEpoch(f"epoch {epoch} has ended")
        newer = [item for item in self.published.get(epoch, []) if item.version > newer_than]
        return newer[-1] if newer else None


def run_all(engine: Any) -> dict[str, Completion]:
    """Steps until nothing is left to do."""
    finished: dict[str, Completion] = {}
    while engine.num_unfinished:
        for completion in engine.step():
            assert completion.request_id not in finished
            finished[completion.request_id] = completion
    return finished


@pytest.fixture(scope="session")
def arithmetic() -> Arithmetic:
    return Arithmetic(ArithmeticConfig(num_train_rows=50, num_eval_rows=20))


@pytest.fixture(scope="session")
def calculator() -> Calculator:
    return Calculator(CalculatorConfig(num_train_rows=50, num_eval_rows=20))


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory, calculator: Calculator) -> dict[str, Path]:
    """Model directories by name: the tasks' alphabet, small enough to start fast."""
    require("transformers")
    found = {}
    for name in ("tied", "untied"):
        found[name] = tmp_path_factory.mktemp(name)
        write_tiny_model(
            found[name],
            alphabet=calculator.alphabet(),
            hidden_size=64,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            intermediate_size=128,
            tie_word_embeddings=name == "tied",
            seed=1,
        )
    return found


@pytest.fixture(scope="session")
def codec(directories: dict[str, Path]) -> TextCodec:
    return TextCodec(directories["tied"])


@pytest.fixture(scope="session")
def engine_of(directories: dict[str, Path], codec: TextCodec) -> Iterator[Callable[..., VllmEngine]]:
    """The engine of a model, started when it is first asked for. All of them stay: the first that ended would take
    along what vLLM keeps once for the process."""
    require("vllm")
    engines: dict[tuple[object, ...], VllmEngine] = {}

    def engine_of(name: str, **settings: Any) -> VllmEngine:
        key = name, *sorted(settings.items())
        if key not in engines:
            config, ends = ENGINE.model_copy(update=settings), [codec.eos_token_id]
            with vllms_own_warnings():
                engines[key] = VllmEngine(directories[name], config, sampling=SAMPLING, stop_token_ids=ends, threads=1)
        return engines[key]

    yield engine_of
    for engine in engines.values():
        engine.close()


@pytest.fixture
def trainer_of(directories: dict[str, Path]) -> Callable[[str], Trainer]:
    """A trainer whose model has an opinion: one random update away from the directory's."""

    def trainer_of(name: str) -> Trainer:
        trainer = Trainer(TokenPolicy(load_policy_model(directories[name], LMPolicyConfig()), SAMPLING))
        trainer.move(0.2)
        return trainer

    return trainer_of


@pytest.fixture
def trainer(trainer_of: Callable[[str], Trainer]) -> Trainer:
    return trainer_of("tied")


@pytest.fixture
def engine(engine_of: Callable[[str], VllmEngine], trainer: Trainer) -> VllmEngine:
    """The engine of tied embeddings, at rest, with the trainer's weights as version 0."""
    return ready(engine_of("tied"), trainer)


def ready(engine: VllmEngine, trainer: Trainer) -> VllmEngine:
    run_all(engine)  # what a test that failed left behind
    engine.load(trainer.weights(0))
    # What tests before this one left in the prefix cache was computed under other weights of the same version.
    internals: Any = engine
    internals._core.reset_prefix_cache()
    return engine


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def make_ticket() -> Callable[..., Ticket]:
    def make(
        ticket_id: int = 0, *, attempt: int = 1, epoch: int = 1, num_samples: int = 4, row: int = 0, **settings: Any
    ) -> Ticket:
        defaults: dict[str, Any] = {
            "seed": derive_seed(0, "ticket", ticket_id),
            "min_policy_version": 0,
            "lane": ticket_id,
            "deadline_s": 300.0,
        }
        header = Header(ticket_id, attempt, epoch, "policy")
        return Ticket(header, payload=PromptPayload(row, 0, num_samples), **{**defaults, **settings})

    return make


@pytest.fixture(name="run_all")
def run_all_fixture() -> Callable[[Any], dict[str, Completion]]:
    return run_all


@pytest.fixture(name="ready")
def ready_fixture() -> Callable[[VllmEngine, Trainer], VllmEngine]:
    return ready
