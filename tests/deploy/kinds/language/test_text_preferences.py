"""A language run's reward model: it learns from the prompts that it scores, from responses as the actors sample them,
and from labels as often wrong as they are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.text_task import Judgement, Row
from rollcall.actors.trajectory_scoring import asked_of
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.deploy.config.recipe.preference_settings import TextPreferencesConfig
from rollcall.deploy.drive.lifecycle import run_nested
from rollcall.deploy.kinds.language.text_preferences import reward_model_run
from rollcall.deploy.preferences.implicit_rewards import sampled_pairs
from rollcall.learners.maths.preference_losses import bradley_terry_nll
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.tiny_model import write_tiny_model
from rollcall.learners.models.language.token_policy import TokenPolicy, load_policy_model
from rollcall.reward_service.models.text_encoder import TextEncoder
from rollcall.reward_service.preferences.files import PreferencePair, read_preferences
from rollcall.reward_service.preferences.records import TextCandidate
from rollcall.reward_service.protocol import Message
from rollcall.reward_service.raters.synthetic_rater import SyntheticRater, rank
from rollcall.reward_service.raters.synthetic_rater_config import SyntheticRaterConfig
from tests.needs import require_module

transformers = require_module("transformers")

TEMPLATE = "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}={% endif %}"
SMALL: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "intermediate_size": 32}


class Letters:
    """Ten prompts, plain or through the chat template."""

    def __init__(self, *, chat: bool) -> None:
        self.chat = chat

    def rows(self, split: str) -> Sequence[Row]:
        return [Row(f"{a}{b}", "", f"letters {a}{b}") for a in "ab" for b in "abcde"]

    def judge(self, row: Row, completion: str) -> Judgement:
        return Judgement(0.0, correct=False, parsed=True)

    def environment(self, row: Row) -> None:
        return None


def number_of_as(prompt: Any, response: str) -> float:
    return float(response.count("a"))


TRUE_REWARD = f"{__name__}:number_of_as"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its head is drawn wide enough for what it samples to be far from uniform."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_model(directory, alphabet="<=>abcde", seed=0, **SMALL)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def train(model: Path, directory: Path, *, chat: bool, sampling: SamplingConfig | None = None, **settings: Any) -> Path:
    config = TextPreferencesConfig(**{"total_labels": 60, "epochs": 1, "batch_size": 16, "threads": 1, **settings})
    task = Letters(chat=chat)
    codec = TextCodec(model, chat=chat)
    sampling = sampling or SamplingConfig(max_tokens=6)
    goal = directory / "trained"
    run_nested(
        reward_model_run(config, task, codec, model, goal, sampling=sampling, seed=1, tell=lambda _: None)  # type: ignore[arg-type]
    )
    return goal


def learnt_from(goal: Path) -> tuple[dict[str, Any], list[PreferencePair]]:
    config = yaml.safe_load((goal / "config.yaml").read_text())
    return config, read_preferences(Path(config["data"]["train"]))  # type: ignore[return-value]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("source", ["true_reward", "file"])
def test_a_reward_model_learns_from_the_prompts_that_it_scores(
    model: Path, tmp_path: Path, chat: bool, source: str
) -> None:
    """As tokens: they are those that the policy answers."""
    settings: dict[str, Any] = {"true_reward": TRUE_REWARD}
    if source == "file":
        lines = [
            {"prompt": row.prompt, "chosen": "a" * i, "rejected": "b"}
            for row in Letters(chat=chat).rows("train")
            for i in (1, 2)
        ]
        settings = {"file": str(tmp_path / "given.jsonl")}
        (tmp_path / "given.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    goal = train(model, tmp_path, chat=chat, **settings)
    scored = {asked_of(Letters(chat=chat), row): row for row in Letters(chat=chat).rows("train")}  # type: ignore[arg-type]
    _, pairs = learnt_from(goal)
    assert len(pairs) >= 10
    encoder, codec = TextEncoder(goal / "model"), TextCodec(model, chat=chat)
    for pair in pairs:
        assert encoder.prompt(pair.prompt) == codec.prompt(scored[pair.prompt].prompt)
    assert isinstance(pairs[0].prompt, tuple if chat else str)


def test_messages_for_a_task_of_plain_prompts_are_refused(model: Path, tmp_path: Path) -> None:
    line = {"messages": [{"role": "user", "content": "a"}], "chosen": "a", "rejected": "b"}
    (tmp_path / "given.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(BadInput, match=r"given\.jsonl:1: messages, .*set task\.chat=true"):
        train(model, tmp_path, chat=False, file=str(tmp_path / "given.jsonl"))


# How responses are sampled.


def test_pairs_are_sampled_as_the_actors_sample(model: Path, tmp_path: Path) -> None:
    only_the_likeliest = SamplingConfig(max_tokens=6, top_k=1)
    with pytest.raises(BadInput, match=r"of 60 pairs 0 differ: .*top_k=1.*raise actors\.sampling\.temperature"):
        train(model, tmp_path, chat=False, sampling=only_the_likeliest, true_reward=TRUE_REWARD)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(max_tokens=1),
        SamplingConfig(max_tokens=1, temperature=0.3, top_k=3),
        SamplingConfig(max_tokens=1, temperature=2.0, top_p=0.6),
    ],
    ids=["all", "sharper, of three", "flatter, of a nucleus"],
)
def test_samples_have_the_distribution_that_is_asked_for_whatever_the_model_says_of_itself(
    model: Path, sampling: SamplingConfig
) -> None:
    """4,000 samples of one token: each frequency within 0.04 of the processed softmax (five deviations of 0.5)."""
    loaded: Any = load_policy_model(model, LMPolicyConfig(model=str(model)))
    with torch.no_grad():
        loaded.get_output_embeddings().weight.mul_(8.0)
    loaded.generation_config.update(repetition_penalty=9.0, top_k=2, temperature=0.1, do_sample=False)
    policy = TokenPolicy(loaded, SamplingConfig())
    prompt = np.array(TextCodec(model).prompt("ab"), np.int32)
    torch.manual_seed(0)
    with torch.no_grad():
        found = sampled_pairs(policy, [prompt] * 2000, sampling, torch.device("cpu"))
        logits = loaded.eval()(torch.from_numpy(prompt[None].astype(np.int64))).logits[0, -1].double()
    probabilities = (logits / sampling.temperature).softmax(-1)
    order = probabilities.argsort(descending=True)
    allowed = order[: sampling.top_k or len(order)]
    kept = probabilities[allowed] / probabilities[allowed].sum()
    allowed = allowed[: int((kept.cumsum(0) < sampling.top_p).sum()) + 1]
    expected = torch.zeros_like(probabilities)
    expected[allowed] = probabilities[allowed] / probabilities[allowed].sum()
    counts = np.bincount([int(tokens[0]) for pair in found for tokens in pair], minlength=len(expected))
    assert expected.max() < 0.99
    np.testing.assert_allclose(counts / 4000, expected.numpy(), atol=0.04)


# How often labels are wrong.


@pytest.mark.parametrize("error_rate", [0.0, 0.05, 0.2, 0.45])
def test_the_loss_believes_a_rater_to_be_wrong_as_often_as_it_is(error_rate: float) -> None:
    """However much better one is: an answer is right with 1 - error_rate, by the rater and by the likelihood. 4,000
    answers: five standard deviations are 0.04 at most."""
    config = SyntheticRaterConfig(error_rate=error_rate)
    rater = SyntheticRater("r", number_of_as, config)
    pair = [TextCandidate(prompt="", response="a" * 50), TextCandidate(prompt="", response="b")]
    right = sum(rater.answer(pair).choice == "left" for _ in range(4000)) / 4000
    nll = bradley_terry_nll(differences=torch.tensor([50.0], dtype=torch.float64), noise=config.random_share)
    assert math.exp(-float(nll)) == pytest.approx(1 - error_rate, abs=1e-9)
    assert right == pytest.approx(1 - error_rate, abs=0.04)


def test_the_likelihood_finds_the_reward_that_a_rater_with_errors_judges_by() -> None:
    """A reward of 3 a unit, from 20,000 answers: over seeds the estimate deviates by 0.1, and three of these are
    allowed. Told of the rate of errors alone it is 2.1; told of none, 1.5."""
    config = SyntheticRaterConfig(temperature=1 / 3, error_rate=0.1)
    generator = np.random.default_rng(0)
    units = generator.uniform(-2, 2, 20_000)
    right = [rank([unit, 0.0], config, generator)[0] == 0 for unit in units]
    signed = torch.from_numpy(np.where(right, units, -units))
    rewards = torch.arange(1.0, 5.0, 0.02, dtype=torch.float64)

    def likeliest(noise: float) -> float:
        losses = [float(bradley_terry_nll(differences=reward * signed, noise=noise).mean()) for reward in rewards]
        return float(rewards[int(np.argmin(losses))])

    assert likeliest(config.random_share) == pytest.approx(3.0, abs=0.3)
    assert likeliest(config.error_rate) < 2.5


@pytest.mark.parametrize(("error_rate", "noise"), [(0.0, 0.0), (0.1, 0.2), (0.5, 0.99)])
def test_the_reward_model_is_told_of_the_raters_noise(
    model: Path, tmp_path: Path, error_rate: float, noise: float
) -> None:
    goal = train(model, tmp_path, chat=False, true_reward=TRUE_REWARD, noise={"error_rate": error_rate})
    assert learnt_from(goal)[0]["loss"]["noise"] == pytest.approx(noise)


def test_a_chat_prompt_is_one_message_of_a_user() -> None:
    row = Letters(chat=True).rows("train")[0]
    assert asked_of(Letters(chat=True), row) == (Message(role="user", content="aa"),)  # type: ignore[arg-type]
