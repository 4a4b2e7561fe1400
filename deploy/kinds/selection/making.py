"""What samples for a selection, made of a language run's factory: whose weights, by which engine, and who scores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rollcall.actors.engine.vllm_engine import VllmEngine
from rollcall.actors.language.lm_actor import LMActor
from rollcall.actors.trajectory_scoring import TextScoring
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.weights import Weights
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.selection.sampler import ActorSampler, FrozenWeights


@dataclass(frozen=True)
class Generation:
    """An engine under way, and the actor that drives it."""

    members: LanguageFactory
    engine: VllmEngine
    actor: LMActor
    source: FrozenWeights

    @classmethod
    def start(cls, members: LanguageFactory, weights: Weights | None) -> Generation:
        """`weights`: those of the model's directory without."""
        source = FrozenWeights(weights)
        engine = members.engine(members.config.actors.engine)
        actor = LMActor(
            actor_id="lm-0",
            engine=engine,
            conversations=members.conversations(engine, greedy=False),
            rows=members.task.rows("train"),
            weights_source=source,
        )
        return cls(members, engine, actor, source)

    def sampler(self, *, seed: int, num_samples: int | None = None) -> ActorSampler:
        """`num_samples`: of a prompt; default: actors.samples_per_prompt."""
        members, config = self.members, self.members.config.actors
        num_samples = num_samples or config.samples_per_prompt
        rows = members.task.rows("train")
        return ActorSampler(
            actor=self.actor,
            source=self.source,
            rows=rows,
            texts=TextScoring(members.task, members.codec, rows),
            scorer=None if members.reward is None else members.scorer(),
            num_samples=num_samples,
            seed=seed,
            deadline_s=config.ticket_deadline_s,
            at_once=max(2, 2 * config.engine.max_num_seqs // num_samples),
        )

    def held_out_answers(self, weights: Weights) -> list[tuple[str, str]]:
        """(prompt, answer) of each held-out row that the run is judged on, as its `eval` says."""
        members, config = self.members, self.members.config.eval
        self.engine.load(weights)
        conversations = members.conversations(self.engine, greedy=config.greedy)
        for index, row in enumerate(members.task.rows("eval")[: members.eval_episodes]):
            conversations.begin(index, row, seed=derive_seed(config.seed, "eval", index))
        found: list[tuple[str, str]] = []
        while conversations.num_running:
            found += [(sample.row.prompt, conversations.text(sample)) for sample in conversations.advance()]
        return found

    def close(self) -> None:
        self.engine.close()


def chosen_rows(members: LanguageFactory, *, count: int | None, seed: int) -> list[int]:
    """The first `count` (none: all) of the task's usable training rows, in a seeded order: of more, these come first.

    Raises:
      BadInput: where a prompt is a conversation of several turns, or none is short enough.
    """
    check_single_turn(members)
    usable = members.usable_rows()
    order = np.random.default_rng(derive_seed(seed, "rows")).permutation(len(usable))
    return [usable[index] for index in order[:count]]


def check_single_turn(members: LanguageFactory) -> None:
    """Raises BadInput: where the task is none of single answers."""
    task = members.task
    if task.environment(task.rows("train")[0]) is not None:
        raise BadInput(
            f"task {members.label} is a conversation of several turns, and what is selected are single answers: use a "
            "task that judges one turn"
        )


def digest_of(model_directory: Path) -> str:
    """Of a model's weights and config, file by file: 16 hex digits that other weights do not have.

    Raises:
      BadInput: when there are no weights.
    """
    files: Sequence[Path] = sorted(model_directory.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{model_directory}: no model is in it (*.safetensors): name a directory that has one")
    digest = hashlib.sha256()
    for path in (*files, model_directory / "config.json"):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def sampled_by(members: LanguageFactory, policy: str, *, seed: int) -> dict[str, Any]:
    """Everything that a completion depends on, but which prompts there are. `policy`: by its digest."""
    config, reward = members.config, members.reward_config
    return {
        "policy": policy,
        "task": config.task.model_dump(mode="json"),
        "samples_per_prompt": config.actors.samples_per_prompt,
        "sampling": config.actors.sampling.model_dump(mode="json"),
        "max_model_len": config.actors.engine.max_model_len,
        "reward": None if reward is None else reward.model_dump(mode="json", exclude={"patience_s"}),
        "seed": seed,
    }
