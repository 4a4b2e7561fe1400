"""The settings of a control policy, as a recipe has them: its network, and how its actions are drawn."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollcall.learners.maths.choices import Squash
from rollcall.learners.models.activation import Activation
from rollcall.learners.models.q_config import QConfig


class CloningConfig(BaseModel):
    """What a policy imitates before it learns by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str | tuple[str, ...] = Field(
        min_length=1, description="a recorded set (rollcall eval RUN --record FILE, or minari:ID), or a list of such"
    )
    episodes: int | None = Field(default=None, ge=1, description="of them, in a seeded order; none: all")
    steps: int = Field(default=2000, ge=1, description="gradient steps")
    batch_size: int = Field(default=256, ge=1, description="recorded steps of each")
    learning_rate: float = Field(default=1e-3, gt=0, description="step size of Adam")
    loss: Literal["nll", "mse"] = Field(
        default="nll",
        description="maximum likelihood; or, of continuous actions, the squared distance, which leaves the policy's "
        "deviation at log_std_init: with it, it explores from the start",
    )


class PolicyConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    torso: Literal["auto", "mlp", "cnn"] = Field(
        default="auto",
        description="auto: a CNN for images of at least 36 x 36, an MLP for the rest; cnn: a small one for smaller "
        "images",
    )
    image_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Of the CNN's forward and backward pass. bfloat16: twice as fast on CPUs with AMX and "
        "on GPUs; parameters and what follows the CNN stay float32.",
    )
    hidden_sizes: tuple[int, ...] = Field(default=(64, 64), description="Units of each hidden layer of the MLP.")
    activation: Activation = Field(default="tanh", description="Of the MLP; CNNs use ReLU.")
    shared_torso: bool | None = Field(
        default=None, description="Policy and value share features. Default: only with a CNN or recurrence."
    )
    recurrent: Literal["none", "lstm", "gru"] = Field(default="none", description="Memory on top of the torso.")
    recurrent_size: int = Field(default=128, ge=1, description="Units of the LSTM or GRU.")
    orthogonal_init: bool = Field(
        default=True,
        description="Orthogonal weights: gain sqrt(2) in layers, 0.01 for the policy's head, 1 for the value's.",
    )
    log_std_init: float = Field(default=0.0, description="Initial log standard deviation of continuous actions.")
    squash: Squash = Field(
        default="clip", description="How a continuous action meets the bounds: clipped, or through tanh."
    )
    state_dependent_std: bool = Field(
        default=False, description="Continuous actions: their deviations are the network's too, not parameters (SAC's)."
    )
    exploration_noise: float | None = Field(
        default=None,
        ge=0,
        description="Given, continuous actions are the mean, through tanh, and at actors noise of this deviation, in "
        "half widths of the bounds (TD3's); greedy actions have none.",
    )
    random_start: bool = Field(
        default=False,
        description="Actors take any action alike until the learner begins to learn (SAC's, TD3's), unless the policy "
        "begins with another's weights.",
    )
    normalise_observations: bool = Field(default=False, description="Running mean and variance of float observations.")
    observation_clip: float = Field(default=10.0, gt=0, description="Normalised observations stay within +- this.")
    normalise_rewards: bool = Field(
        default=False, description="Divide rewards by the std of the running discounted return."
    )
    reward_clip: float = Field(default=10.0, gt=0, description="Normalised rewards stay within +- this.")
    q: QConfig | None = Field(
        default=None,
        description="the head says what actions are worth, and the best is taken but for exploration (dqn): a section",
    )
    init_from: str | None = Field(
        default=None,
        min_length=1,
        description="Begin with the weights and statistics of another run (its directory, its name under runs/, or one "
        "of its checkpoints); optimiser, schedules and books begin anew. None: random weights.",
    )

    warm_start: CloningConfig | None = Field(
        default=None, description="Imitate a recorded set first (rollcall eval RUN --record FILE). None: do not."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warm_start is not None and self.init_from is not None:
            raise ValueError("warm_start and init_from each say what the policy begins with: leave one of the two out")
        if self.recurrent != "none" and self.shared_torso is False:
            raise ValueError("shared_torso=false does not go with recurrent: there is one memory; remove shared_torso")
        if self.recurrent != "none" and self.q is not None:
            raise ValueError(f"recurrent={self.recurrent} does not go with q: use none")
        if any(size < 1 for size in self.hidden_sizes):
            raise ValueError(f"hidden_sizes={list(self.hidden_sizes)}: every layer needs at least one unit")
        return self

    @property
    def starts_at_random(self) -> bool:
        return self.random_start and self.init_from is None and self.warm_start is None
