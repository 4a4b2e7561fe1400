"""A language run's checkpoint: its model to evaluate on held-out rows, to export, and for another run to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.tasks.text_task import all_shown
from rollcall.cluster.checkpoint import load_weights
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.config.settings import COMMAND_LINE
from rollcall.deploy.kinds.checkpoints import checkpoint_of
from rollcall.deploy.kinds.exporting import Exported, ExportOptions
from rollcall.deploy.kinds.kind import EvalOptions, StoredRun
from rollcall.deploy.kinds.language.export import TrainedModel, export_language
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.language.model_card import Training
from rollcall.deploy.kinds.language.model_directory import model_source, save_policy
from rollcall.deploy.rundir.files import INIT_FROM
from rollcall.learners.models.language.lora_config import LoraConfig

_MAX_PROMPTS = 100  # looked at for characters that the model's tokenizer does not know


@dataclass(frozen=True)
class LoadedLanguage:
    """A checkpoint's language model and what it was trained for."""

    config: LanguageConfig
    run_directory: Path
    checkpoint: Path
    weights: Weights
    lora: LoraConfig | None  # of what was trained

    @classmethod
    def of(cls, run: StoredRun) -> LoadedLanguage:
        """Of the run's latest whole checkpoint, or of the one that is named. Raises CheckpointDamaged."""
        checkpoint, _ = checkpoint_of(run)
        return cls(run.config, run.directory, checkpoint, load_weights(checkpoint), run.config.policy.lora)

    @property
    def members(self) -> LanguageFactory:
        return LanguageFactory(self.config, self.run_directory.resolve())

    def evaluate(self, options: EvalOptions) -> dict[str, Any]:
        """Answers held-out rows. Where two tokens are equally likely to the last bits, an answer may tip with what else
        the engine's batch holds: with the number of rows.

        Raises:
          BadInput: when the task has no held-out rows, or the model is gone.
        """
        if options.video is not None:
            raise BadInput(f"--video = {str(options.video)!r} ({COMMAND_LINE}): a language run shows nothing to film")
        if options.record is not None:
            raise BadInput(f"--record = {options.record!r} ({COMMAND_LINE}): a language run steps no env to record")
        settings = self.config.eval
        settings = settings.model_copy(update={"greedy": settings.greedy and not options.stochastic})
        members = replace(self.members, config=self.config.model_copy(update={"eval": settings}))
        if not members.task.rows("eval"):
            raise BadInput(f"{self.run_directory}: the task {members.label} has no held-out rows to answer")
        model_source(members.model_directory)
        wanted = options.episodes or settings.num_rows or type(settings)().num_rows
        evaluator = members.evaluator()
        try:
            result = evaluator.evaluate(self.weights, wanted, options.seed)
        finally:
            evaluator.close()
        return {
            "checkpoint": str(self.checkpoint),
            "policy_version": result.policy_version,
            "mode": "greedy" if settings.greedy else "stochastic",
            "seed": settings.seed if options.seed is None else options.seed,
            **{"mean": result.mean, "std": result.std, "n": result.n, "unit": result.unit},
            "unparsed": result.unparsed,
            "rewards": list(result.returns),
            "lengths": list(result.lengths),
        }

    def export(self, options: ExportOptions) -> Exported:
        options.refuse_for_language(self.run_directory)
        members, config = self.members, self.config
        source = model_source(members.model_directory)
        needs = getattr(config.algorithm_class, "needs", None)
        trained = TrainedModel(
            weights=self.weights,
            checkpoint=self.checkpoint,
            source=source,
            given=members.model_directory,
            taken=(source, members.given_model),
            policy=config.policy,
            lora=self.lora,
            has_critic=bool(getattr(needs, "critic", False)),
            training=Training.of(self.run_directory, config, config.task_name),
        )
        return export_language(trained, options)

    def write_beginning(self, directory: Path, origin: Mapping[str, Any]) -> None:
        source = model_source(self.members.model_directory)
        save_policy(self.weights, source, directory / INIT_FROM, marker=dict(origin))


def misfit_of(config: LanguageConfig, loaded: LoadedLanguage) -> str:
    """Why the model cannot do the new run's task: its tokenizer lacks what the task needs."""
    task = config.build_task()
    codec = TextCodec(model_source(loaded.members.model_directory), chat=task.chat)
    texts = [all_shown(row) for row in task.rows("train")[:_MAX_PROMPTS]]
    if hasattr(task, "alphabet"):
        texts.append(task.alphabet())
    unknown = sorted({c for c in set("".join(texts)) if not codec.decode(codec.encode(c)) and not c.isspace()})
    if unknown:
        return f"its tokenizer does not know {', '.join(map(repr, unknown[:8]))} of the task {config.task_name}"
    return ""
