"""What a language run's settings leave open, decided once it is known what there is. config.yaml keeps it open."""

from __future__ import annotations

from rollcall.actors.engine.settings import EngineConfig
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.plan.gpus import Shares


def with_shares(config: LanguageConfig, shares: Shares) -> LanguageConfig:
    """Of engines, once it is known who has how much of a GPU."""
    engine = config.actors.engine
    found: dict[str, object] = {}
    if engine.weight_transfer == "auto":
        found["weight_transfer"] = shares.transfer
    if engine.dtype == "auto":
        found["dtype"] = "bfloat16" if shares.actor else "float32"
    if engine.gpu_memory_utilization is None:
        found["gpu_memory_utilization"] = shares.utilization
    actors = config.actors.model_copy(update={"engine": engine.model_copy(update=found)})
    return config.model_copy(update={"actors": actors})


def with_budget(config: LanguageConfig, tokens: int) -> LanguageConfig | None:
    """With so many padded tokens in a forward pass of the learner; None: the settings say how many."""
    if getattr(config.algorithm, "token_budget", 0) is not None:
        return None
    return config.model_copy(update={"algorithm": config.algorithm.model_copy(update={"token_budget": tokens})})


def of_evaluator(engine: EngineConfig, utilization: float | None) -> EngineConfig:
    """An actor's engine as the evaluator has it. `utilization`: its share of a GPU's memory; None: as an actor's."""
    own: dict[str, object] = {"weight_transfer": "object_store"}
    if utilization is not None:
        own["gpu_memory_utilization"] = utilization
    return engine.model_copy(update=own)
