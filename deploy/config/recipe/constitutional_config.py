"""The settings of constitutional AI's first stage: whose principles, who criticises and revises, and how the revisions
are imitated."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, StringConstraints

from rollcall.cluster.inputs.strict import Strict
from rollcall.deploy.config.recipe.selection_config import CollectingConfig, named_settings

Principle = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class CriticConfig(Strict):
    """Who criticises and revises. Its key, if it wants one, is in $ROLLCALL_JUDGE_KEY."""

    url: str | None = Field(
        default=None,
        pattern=r"^https?://[^@\s]+$",
        description="of an OpenAI-compatible server, up to /v1; none: `model` is a model's directory, which an engine "
        "of the run's own serves, frozen",
    )
    model: str = Field(min_length=1, description="by the name the server gives it; without url a directory")
    max_model_len: int = Field(default=4096, ge=64, description="without url: tokens of question and reply together")
    temperature: float = Field(default=0.0, ge=0, description="of critiques and revisions")
    max_tokens: int = Field(default=512, ge=1, description="of a critique, and of a revision")
    timeout_s: float = Field(default=60.0, gt=0, description="of one request")
    deadline_s: float = Field(default=180.0, gt=0, description="of all that one response needs")
    tries: int = Field(default=4, ge=1, le=20, description="of one request, where trying again may help")
    concurrency: int = Field(default=16, ge=1, le=1024, description="responses criticised at once")


class ConstitutionalSettings(BaseModel):
    """Stage one of constitutional AI (Bai et al., 2022, arXiv:2212.08073, section 3): the policy's responses are
    criticised by a principle, revised, and the revisions imitated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["constitutional"] = Field(default="constitutional", description="the algorithm")
    principles: tuple[Principle, ...] = Field(min_length=1, description="what responses are to keep, one text each")
    critic: CriticConfig = Field(description="who criticises and revises")
    revisions: int = Field(
        default=1, ge=1, le=8, description="critiques and revisions of a response, each by a principle drawn for it"
    )
    measure: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="module:function of (prompt, response): whether a response breaks a principle; the share of "
        "held-out answers that do is the evaluation, before and after; nobody learns from it; none: the task's own "
        "judgement",
    )
    steps: int = Field(default=200, ge=1, description="learner steps")
    batch_size: int = Field(default=64, ge=1, description="revisions of one learner step")
    token_budget: int = Field(default=16384, ge=1, description="padded tokens of one forward pass: changes no result")

    rounds: ClassVar[int] = 1
    restart: ClassVar[bool] = False


class ConstitutionalConfig(CollectingConfig):
    """Of which revised responses are imitated. actors.prompts_per_batch says how many."""

    algorithm: Annotated[
        SerializeAsAny[BaseModel], BeforeValidator(partial(named_settings, ConstitutionalSettings))
    ] = Field(description="the principles, the critic, and how long revisions are imitated")

    @property
    def stage(self) -> ConstitutionalSettings:
        assert isinstance(self.algorithm, ConstitutionalSettings)
        return self.algorithm

    @property
    def learner_steps(self) -> int | None:
        return self.stage.steps

    def derived(self) -> dict[str, str]:
        return {
            "responses to revise": f"{self.actors.prompts_per_batch:,}, {self.stage.revisions} times each",
            "learner steps": f"{self.stage.steps:,}",
        }
