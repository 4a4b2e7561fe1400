"""How a policy is judged, as a recipe has it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

# The policy always acts on so many rows, episode i in row i modulo that: a matrix product of another shape, or of
# another row, may differ in its last bit, and an env that amplifies it ends elsewhere.
ROWS = 20


class EvalConfig(BaseModel):
    """How a policy is judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    episodes: int = Field(
        default=20, ge=0, le=100_000, description="episodes of one evaluation; 0: nothing is evaluated"
    )
    every_steps: int | None = Field(
        default=None, ge=1, description="learner steps between evaluations during the run; default: only at the end"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="episode i begins the same way in every evaluation")
    greedy: bool = Field(default=True, description="the most likely action; false: sampled as in training")
    num_envs: int = Field(
        default=20, ge=1, le=4096, description=f"episodes that run side by side; {ROWS} at the most do"
    )
    max_steps_per_episode: int = Field(
        default=30_000,
        ge=1,
        description="an episode that has not ended by then is left: its return is of so many steps, and the result "
        "says that it is unfinished",
    )
