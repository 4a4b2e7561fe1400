"""What PPO-ptx imitates beside a run's samples: the task's own demonstrations, or a file's rows or texts; the same of a
step for whoever asks; and what cannot be learnt from is said before anything is begun."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rollcall.actors.language.text_codec import TextCodec
from rollcall.cluster.errors import BadInput
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.language.mixed_in import language_collator
from rollcall.learners.batches.token_batch import TokenBatch
from rollcall.learners.models.language.tiny_model import write_tiny_model
from tests.learners.token_experience import samples
from tests.needs import require
from tests.runs import config_of

require("transformers")

RECIPE = """\
total_learner_steps: 4
runtime: serial
task: {name: jsonl, path: rows.jsonl}
policy: {model: model}
algorithm: {name: lm_ppo, ptx_coef: 0.5, ptx_batch_size: 3}
actors:
  samples_per_prompt: 2
  prompts_per_batch: 4
  sampling: {max_tokens: 8}
  engine: {max_model_len: 16}
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.yaml").write_text(RECIPE)
    write("rows.jsonl", *({"prompt": f"1+{n}=", "answer": str(n + 1)} for n in range(8)))
    sizes: dict[str, Any] = {"hidden_size": 32, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1}
    write_tiny_model(Path("model"), alphabet="0123456789+=", max_position_embeddings=32, seed=0, **sizes)
    return tmp_path


def write(name: str, *lines: Mapping[str, object]) -> None:
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def made(*overrides: str) -> LanguageFactory:
    return LanguageFactory(config_of("sums.yaml", overrides), Path("run"))


def beside(factory: LanguageFactory, step: int) -> list[str]:
    """What is imitated beside the samples of a step: prompts in brackets."""
    models = factory.models()
    collator = language_collator(factory.config, models, factory.task, factory.codec, factory.given_model)
    batch = collator.collate(samples(Path("model"), step=0), torch.device("cpu"), step=step)
    assert isinstance(batch, TokenBatch) and batch.supervised is not None
    return shown(batch.supervised, factory.codec)


def shown(batch: TokenBatch, codec: TextCodec) -> list[str]:
    found = []
    for begin, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        imitated = {int(place) for place in batch.sampled} & set(range(begin, end))
        first = min(imitated)
        assert imitated == set(range(first, end)), "all that follows the prompt is imitated, its end too"
        tokens = batch.token_ids.tolist()
        found.append(f"[{codec.decode(tokens[begin:first])}]{codec.decode(tokens[first:end])}")
    return found


def test_the_tasks_own_demonstrations_are_imitated_in_an_order_that_seed_and_step_settle(work: Path) -> None:
    first = [beside(made(), step) for step in range(3)]
    assert all(len(items) == 3 for items in first)
    assert len({item for items in first[:2] for item in items}) == 6, "each once a pass"
    assert all(item.startswith("[1+") and item.endswith(f"]{int(item[3]) + 1}") for items in first for item in items)
    assert beside(made(), 2) == first[2], "whoever goes on at a step imitates the same there"
    assert [beside(made("seed=1"), step) for step in range(3)] != first


def test_a_files_rows_take_their_place_and_of_texts_all_is_imitated_in_pieces_that_fit(work: Path) -> None:
    write("shown.jsonl", {"prompt": "2+2=", "answer": "4"})
    assert beside(made("algorithm.ptx_file=shown.jsonl"), 0) == ["[2+2=]4"] * 3
    write("both.jsonl", {"prompt": "2+2=", "answer": "4", "text": "2+2=4"})
    assert beside(made("algorithm.ptx_file=both.jsonl"), 0) == ["[2+2=]4"] * 3, "a row, whatever else stands in it"
    write("texts.jsonl", {"text": "1+1=2"}, {"text": "0123456789" * 2})
    pieces = {item for step in range(2) for item in beside(made("algorithm.ptx_file=texts.jsonl"), step)}
    assert pieces == {"[1]+1=2", "[0]123456789012345", "[6]789"}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], r"shown\.jsonl: the file is empty"),
        (
            [{"text": "1+1"}, {"text": 7}],
            r"shown\.jsonl:2: the column 'text' is 7, and not a text: fix or remove the line",
        ),
        ([{"text": " "}], r"shown\.jsonl:1: the column 'text' is \" \", and not a text"),
        ([{"prompt": "1+1="}], r"shown\.jsonl:1: there is no column 'answer'"),
        ([{"prompt": "1+1=", "answer": ""}], r"shown\.jsonl:1: the answer \(column 'answer'\) is empty"),
    ],
)
def test_what_cannot_be_learnt_from_is_one_line_that_names_it(
    work: Path, lines: list[dict[str, object]], said: str
) -> None:
    write("shown.jsonl", *lines)
    with pytest.raises(BadInput, match=said) as raised:
        made("algorithm.ptx_file=shown.jsonl").check()
    assert len(str(raised.value).splitlines()) == 1


def test_a_file_that_is_not_there_and_processes_without_a_share_are_refused(work: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.jsonl"):
        made("algorithm.ptx_file=nowhere.jsonl").check()
    with pytest.raises(
        BadInput, match=r"ptx_batch_size.*every one of 4 learner processes needs some in each minibatch"
    ):
        made("learner.num_processes=4", "runtime=ray")
    made("learner.num_processes=3", "runtime=ray")
    with pytest.raises(BadInput, match=r"ptx_file='a.jsonl' with ptx_coef=0: nothing is learnt from it"):
        made("algorithm.ptx_coef=0", "algorithm.ptx_file=a.jsonl")


def test_the_rewards_service_takes_what_its_model_learns_from_and_what_the_policy_writes(work: Path) -> None:
    preferences = ("preferences.true_reward=rollcall.actors.tasks.reviews:kindness_of", "preferences.rounds=2")
    for settings, expected in (
        ((), 2048),
        (("preferences.max_tokens=4096",), 4096),
        (("preferences.max_tokens=4096", "preferences.rounds=1"), 4096),
        (("actors.engine.max_model_len=8192",), 8192),
    ):
        reward = made(*preferences, *settings).reward_config
        assert reward is not None and getattr(reward.scorer, "max_tokens", None) == expected
