"""What raters compare of a run with a text task: what the newest policy wrote, several responses to one prompt; before
its first step, what version 0 writes for this alone. And the reward model that learns, each from the last one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.text_task import Task
from rollcall.actors.trajectory_scoring import RewardEndpoint, asked_of, responses_of
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.config.recipe.preference_config import RewardTrainConfig
from rollcall.deploy.config.recipe.preference_settings import TextPreferencesConfig
from rollcall.deploy.kinds.language.text_preferences import reward_training, said_of, sampled_texts
from rollcall.deploy.kinds.preference_trainer import BARREN_TRIES, PreferenceTraining, Wanted, current_model
from rollcall.deploy.kinds.raters import programs
from rollcall.deploy.preferences import held_out
from rollcall.deploy.preferences.data_config import PreferenceDataConfig
from rollcall.deploy.preferences.fresh_labels import ANY_LENGTH
from rollcall.reward_service.models.reward_model_config import RewardModelConfig
from rollcall.reward_service.models.reward_model_files import RewardModelCard, new_text_model, save_text_model
from rollcall.reward_service.models.reward_models import Statistics
from rollcall.reward_service.preferences.files import Preference, Prompt, SegmentPair, write_preferences
from rollcall.reward_service.preferences.records import Comparison, TextCandidate
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorers.reward_model_scorer import TextRewardScorer, build_reward_model_scorer

PROMPTS = 4000  # whose responses are remembered, the newest
WHOLE_S = 20.0  # without another prompt after which a batch is taken to be as whole as it gets
HELD_OUT = 0.1  # of the prompts, always the same ones
_BARREN_PASSES = 20  # over all responses in a row after which there is no new combination of them
_FRUITLESS = 20  # prompts in a row whose samples are all the same after which there is nothing to compare


def first_model(directory: Path, start: Path, *, members: int, seed: int) -> Path:
    """Where the service finds the newest reward model; before there is any, one that nobody has trained: it says 0."""

    def write(untrained: Path) -> None:
        statistics = Statistics(mean=(0.0,) * members, std=(1.0,) * members)
        card = RewardModelCard(kind="text", statistics=statistics)
        save_text_model(new_text_model(start, seed=seed, members=members), start, untrained, card)

    return current_model(directory, write)


@dataclass(frozen=True)
class Texts:
    """What makes a ComparedTexts."""

    config: TextPreferencesConfig
    task: Task
    codec: TextCodec
    start: Path  # the policy of version 0
    sampling: SamplingConfig
    batch: int  # prompts of a learner step
    total_steps: int
    seed: int

    def __call__(self, clock: Callable[[], float] = time.monotonic) -> ComparedTexts:
        return ComparedTexts(self, clock)

    def due(self, policy_version: int) -> int:
        return self.config.labels_due(policy_version / self.total_steps)

    def due_before(self, due: int) -> int:
        """Of the round before."""
        rounds = self.config.rounds
        return max((d for d in (self.config.labels_due(n / rounds) for n in range(rounds)) if d < due), default=0)


@dataclass(frozen=True)
class _Answered:
    """A ticket's prompt and what the policy said to it."""

    version: int
    asked: Prompt
    responses: tuple[str, ...]


def training_of(
    config: LanguageConfig, endpoint: RewardEndpoint, directory: Path, *, task: Task, codec: TextCodec, start: Path
) -> PreferenceTraining:
    """Of a run that asks raters while its policy learns. `directory`: of its reward models; `start`: of version 0."""
    asking = config.preferences
    assert asking is not None
    texts = Texts(
        config=asking,
        task=task,
        codec=codec,
        start=start,
        sampling=config.actors.sampling,
        batch=config.actors.prompts_per_batch,
        total_steps=config.learner_steps or 1,
        seed=derive_seed(config.seed, "preferences", asking.seed),
    )
    return PreferenceTraining(
        config=asking,
        endpoint=endpoint,
        directory=directory,
        total_steps=texts.total_steps,
        compared=texts,
        raters=partial(programs, asking),
        asked_about_each=asking.asked_about_each,
    )


class ComparedTexts:
    """A Compared, of responses to a prompt. What is asked in a round depends on its batch alone, and on the seed: a run
    that goes on after a kill asks the same again."""

    mark = ""

    def __init__(self, of: Texts, clock: Callable[[], float]) -> None:
        self._of = of
        self._config = of.config
        self._clock = clock
        self._answered: dict[int, _Answered] = {}  # by ticket
        self._newest_at = clock()
        self._drawn: Iterator[tuple[Prompt, list[str]]] | None = None
        self._first: list[Comparison] = []  # of what version 0 wrote for this
        self.newest_version = -1

    def offer(self, trajectory: LMTrajectory) -> None:
        asked = asked_of(self._of.task, self._of.task.rows("train")[trajectory.row])
        texts = tuple(responses_of(trajectory, self._of.codec))
        ticket = trajectory.header.ticket_id
        self._answered.pop(ticket, None)
        self._answered[ticket] = _Answered(trajectory.min_policy_version, asked, texts)
        while len(self._answered) > PROMPTS:
            del self._answered[next(iter(self._answered))]
        self._newest_at = self._clock()
        self.newest_version = max(self.newest_version, trajectory.min_policy_version)

    def choose(
        self, wanted: Wanted, *, model: Path | None, beat: Callable[[], None] = lambda: None
    ) -> list[Comparison] | None:
        """All that the round asks, and more of it each time that nothing new was among it."""
        before = min(self._of.due_before(wanted.due), wanted.labels)
        whole = -(-(wanted.due - before) // self._config.asked_about_each)
        need = whole + wanted.missing * wanted.tries
        if wanted.due <= self._config.first_labels:
            return self._sampled(need, beat)
        newest = {ticket: a for ticket, a in self._answered.items() if self._of.due(a.version) >= wanted.due}
        if len(newest) < self._of.batch and (not newest or self._clock() - self._newest_at < WHOLE_S):
            return None
        older = sorted({a.version for a in self._answered.values()} - {a.version for a in newest.values()})
        while True:
            considered = need * (1 if model is None else self._config.selection)
            found = self._combined(newest, considered, seed=derive_seed(self._of.seed, "pairs", wanted.due))
            if len(found) >= need or not older:
                return found if model is None or len(found) <= need else self._most_open(found, model)[:need]
            version = older.pop()
            newest |= {ticket: a for ticket, a in self._answered.items() if a.version == version}

    def too_few(self, wanted: Wanted) -> str:
        return (
            f"what the policy writes gives no more to compare than {wanted.labels} labels, and {wanted.due} are due: "
            f"it samples too little of what it can ({said_of(self._of.sampling)}); raise actors.prompts_per_batch, "
            "samples_per_prompt or sampling.temperature, or lower preferences.total_labels"
        )

    def as_learnt(self, preference: Preference) -> Preference:
        return preference

    def run_config(
        self, name: str, labels: Path, preferences: Sequence[Preference], *, new: int, last: Path | None
    ) -> RewardTrainConfig:
        """Of a model that goes on from the last one, with as many gradient steps as its new labels take. What is held
        out is of prompts that stay held out."""
        prompts = [preference.prompt for preference in preferences if not isinstance(preference, SegmentPair)]
        several = len(set(prompts)) > 1
        held = held_out.in_turn(prompts if several else range(len(prompts)), fraction=HELD_OUT)
        paths = {side: labels.parent / "divided" / f"{name}-{text}.jsonl" for side, text in _SIDES.items()}
        paths[False].parent.mkdir(exist_ok=True)
        for side, path in paths.items():
            write_preferences(path, [p for p, is_held in zip(preferences, held, strict=True) if is_held is side])
        data = PreferenceDataConfig(train=str(paths[False]), eval=str(paths[True]))
        training = reward_training(self._config, name, data, start=last or self._of.start, seed=self._of.seed)
        steps = max(1, math.ceil(self._config.epochs * new / self._config.batch_size))
        return training.model_copy(update={"total_learner_steps": steps})

    def _sampled(self, need: int, beat: Callable[[], None]) -> list[Comparison]:
        """Of version 0, in the order in which it is drawn."""
        of = self._of
        if self._drawn is None:
            drawn = sampled_texts(
                of.task,
                of.codec,
                of.start,
                candidates=self._config.candidates,
                sampling=of.sampling,
                seed=derive_seed(of.seed, "first"),
            )
            self._drawn = ((asked_of(of.task, row), texts) for row, texts in drawn)
        known, fruitless = {comparison.id for comparison in self._first}, 0
        while len(self._first) < need and fruitless < _FRUITLESS * BARREN_TRIES:
            prompt, texts = next(self._drawn)
            beat()  # many prompts of a large model take longer than one that hangs is given
            comparison = self._comparison(prompt, texts)
            if comparison is None or comparison.id in known:
                fruitless += 1
                continue
            fruitless = 0
            known.add(comparison.id)
            self._first.append(comparison)
        return self._first[:need]

    def _combined(self, answered: dict[int, _Answered], need: int, *, seed: int) -> list[Comparison]:
        """Responses to the same prompt, put together at random until there are enough: each as often as the others."""
        rng = np.random.default_rng(seed)
        by_prompt: dict[Prompt, dict[str, None]] = {}
        for ticket in sorted(answered):
            by_prompt.setdefault(answered[ticket].asked, {}).update(dict.fromkeys(answered[ticket].responses))
        found: dict[str, Comparison] = {}
        barren = 0
        while len(found) < need and barren < _BARREN_PASSES:
            made: list[Comparison] = []
            for prompt, unordered in by_prompt.items():
                responses = list(unordered)
                texts = [responses[index] for index in rng.permutation(len(responses))]
                size = self._config.candidates
                for begin in range(0, len(texts), size):
                    comparison = self._comparison(prompt, texts[begin : begin + size])
                    made += [] if comparison is None else [comparison]
            new = [made[index] for index in rng.permutation(len(made)) if made[index].id not in found]
            barren = 0 if new else barren + 1
            found |= {comparison.id: comparison for comparison in new}
        return list(found.values())[:need]

    def _most_open(self, comparisons: Sequence[Comparison], model: Path) -> list[Comparison]:
        """First those on which the ensemble disagrees most: by the variance over its members of the probability that
        one is preferred to another, the mean over a comparison's pairs."""
        config = RewardModelConfig(path=str(model), threads=torch.get_num_threads(), max_tokens=ANY_LENGTH)
        scorer = build_reward_model_scorer(config)
        assert isinstance(scorer, TextRewardScorer)
        items: list[ScoreItem] = []
        places: list[range] = []
        for comparison in comparisons:
            texts = [c for c in comparison.candidates if isinstance(c, TextCandidate)]
            places.append(range(len(items), len(items) + len(texts)))
            items += [
                ScoreItem(id=str(n), prompt=text.prompt, messages=text.messages, response=text.response)
                for n, text in zip(places[-1], texts, strict=True)
            ]
        scores = scorer.by_member(items)
        open_ = [
            float(torch.stack([torch.sigmoid(scores[:, i] - scores[:, j]).var(correction=0) for i, j in pairs]).mean())
            for pairs in (list(combinations(place, 2)) for place in places)
        ]
        return [comparisons[index] for index in np.argsort(-np.array(open_), kind="stable")]

    def _comparison(self, prompt: Prompt, texts: Sequence[str]) -> Comparison | None:
        """None where all are the same."""
        distinct = list(dict.fromkeys(texts))
        if len(distinct) < 2:
            return None
        candidates = [TextCandidate.of(prompt, text) for text in distinct]
        return Comparison.of(candidates, metadata={"question": self._config.question})


_SIDES = {False: "learnt", True: "held-out"}
