"""The learner's settings, as a recipe has them."""

from __future__ import annotations

import re
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

from rollcall.learners.loop.optimizer_config import LANGUAGE_EPS, AdamConfig, OptimizerSection, SGDConfig
from rollcall.learners.loop.schedules import ConstantSchedule, ScheduleSection

# Short spellings: of a setting in a section, and how recipes have it beside the section (and config.yaml had it before
# there were sections).
SHORT = {
    "optimizer_eps": ("optimizer", "eps"),
    "weight_decay": ("optimizer", "weight_decay"),
    "warmup_steps": ("schedule", "warmup_steps"),
    "anneal_learning_rate": ("schedule", "kind"),
}


def _with_short_spellings(schema: JsonDict) -> None:
    known = cast(JsonDict, schema["properties"])
    for name, kind in zip(SHORT, ("number", "number", "integer", "boolean"), strict=True):
        known[name] = {"type": kind, "description": f"short for {'.'.join(SHORT[name])}"}


class LearnerConfig(BaseModel):
    """How the parameters are optimised, and by how many processes."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_with_short_spellings)

    learning_rate: float = Field(default=3e-4, gt=0, description="step size of the optimiser")
    optimizer: OptimizerSection = Field(default=AdamConfig(), description="the update rule; a plain string is its kind")
    schedule: ScheduleSection = Field(
        default=ConstantSchedule(),
        description="the step size over the run's consumed steps; a plain string is its kind",
    )
    max_grad_norm: float | None = Field(default=0.5, gt=0, description="global norm at which gradients are clipped")
    num_processes: int = Field(default=1, ge=1, description="learner processes that share each minibatch")
    sharding: Literal["auto", "none", "fsdp"] = Field(
        default="auto",
        description="fsdp: each learner process holds a part of the parameters, of a language model that one GPU has "
        "no room for; none: each holds all of them; auto: fsdp for language models on several GPUs",
    )
    offload_optimizer: bool = Field(
        default=False,
        description="keep the optimiser's state in the host's memory and make its steps there: 8 bytes a parameter "
        "less on the GPU, and a slower step; without effect on a CPU",
    )
    device: str = Field(default="auto", description="auto (a GPU where there is one), cpu, cuda, cuda:N")
    threads: int = Field(default=1, ge=1, description="CPU threads of each learner process")
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="torch.compile of the gradient step; auto: where the run is long enough to pay for it",
    )
    max_skipped_steps: int = Field(
        default=5, ge=1, description="non-finite learner steps in a row after which the run stops"
    )

    @field_validator("device")
    @classmethod
    def _some_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
            raise ValueError("no such device: use auto, cpu, cuda or cuda:N")
        return device

    @model_validator(mode="before")
    @classmethod
    def _short_spellings(cls, value: object) -> object:
        return in_sections(value) if isinstance(value, dict) else value

    def for_language(self) -> LearnerConfig:
        """With the epsilon for models of language, unless one is given."""
        if isinstance(self.optimizer, SGDConfig) or self.optimizer.eps is not None:
            return self
        return self.model_copy(update={"optimizer": self.optimizer.model_copy(update={"eps": LANGUAGE_EPS})})


def in_sections(learner: dict[str, object]) -> dict[str, object]:
    """Settings of a learner with the short spellings put where they belong. Where a setting is given in both ways the
    short one counts: it was written over what a run had."""
    written = dict(learner)
    for short, (where, name) in SHORT.items():
        if short not in written:
            continue
        value, inside = written.pop(short), section(written.get(where))
        if short == "anneal_learning_rate":
            if not isinstance(value, bool):
                raise ValueError(f"anneal_learning_rate={value!r}: must be true or false")
            value = "linear" if value else "constant"
            inside.pop("final_fraction", None)
        if not (name == "eps" and inside.get("kind") == "sgd"):  # it never had one, whatever was written
            inside[name] = value
        written[where] = inside
    return written


def section(value: object) -> dict[str, object]:
    """A section as its settings, whichever way it is written."""
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, BaseModel):
        return value.model_dump()
    return dict(value) if isinstance(value, dict) else {}
