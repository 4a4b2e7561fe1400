"""Which environment a run has, and how it is stepped, as a recipe has it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FRAME_STACK = 4


class EnvConfig(BaseModel):
    """Which environment, and how it is stepped."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(
        min_length=1, description="a gymnasium id, envpool:id, or module:function from the working directory"
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments of the env's constructor")
    vectorization: Literal["auto", "native", "sync", "async"] = Field(
        default="auto",
        description="native: the env's own numpy vector form; sync: one after another; async: a process each",
    )
    autoreset: Literal["auto", "next_step", "same_step"] = Field(
        default="auto", description="when an ended env is reset; what is learned from is the same"
    )
    frame_stack: int | None = Field(
        default=None, ge=1, le=64, description="observations shown together; Atari: 4, of envpool too"
    )
    max_episode_steps: int | None = Field(default=None, ge=1, description="steps after which an episode is truncated")
    fixed_episode_steps: int | None = Field(
        default=None,
        ge=1,
        description="training episodes have this length whatever happens in them, so that it tells nothing; "
        "evaluation has the env as it is",
    )
    reward_clip: float | None = Field(
        default=None,
        gt=0.0,
        description="rewards are clipped to [-this, this] for learning; returns stay the env's own",
    )
    atari: bool | None = Field(default=None, description="standard Atari preprocessing; default: for ids of ALE/")
    episodic_life: bool = Field(default=False, description="Atari: a lost life ends an episode for the learner")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value

    @property
    def num_frames(self) -> int:
        """Of which an observation is a stack, the oldest first; 1: it is none."""
        return self.frame_stack or (FRAME_STACK if self.is_atari else 1)

    @property
    def is_atari(self) -> bool:
        return self.id.startswith("ALE/") if self.atari is None else self.atari
