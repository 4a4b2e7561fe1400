"""The configuration of a search for a reward: a recipe of the control half, by which each candidate is trained, and its
section `design`, which says who writes the candidates and how many."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from rollcall.cluster.cores import usable_cores
from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.config.settings import parse_yaml

_FORMS = {
    "url": (r"https?://[^@\s]+", "the address of a server up to /v1, as http://127.0.0.1:8000/v1, with no password"),
    "key_variable": (r"[A-Za-z_]\w*", "the name of an environment variable, and not the key itself"),
    "fitness": (r"[\w.]+:\w+", "a function by its name, my_module:measure"),
}
PATIENCE_S = 60.0  # of a candidate's run with its own reward service


class DesignConfig(BaseModel):
    """Rewards that a language model writes (Eureka; Ma et al., 2023, arXiv:2310.12931). The env's own are looked at by
    the measure of fitness alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field(min_length=1, description="what the policy is to do, in a sentence: the model is told")
    url: str = Field(description="of a server of the OpenAI protocol, up to /v1; no password in it")
    model: str = Field(min_length=1, description="who writes the rewards, by the name the server gives it")
    key_variable: str | None = Field(default=None, description="the environment variable that holds the server's key")
    iterations: int = Field(default=5, ge=1, le=1000, description="each begins with the best candidate so far")
    candidates: int = Field(default=4, ge=1, le=256, description="rewards asked for in an iteration, one a request")
    temperature: float = Field(default=1.0, ge=0, le=2, description="of the model: above 0, or candidates are alike")
    max_tokens: int = Field(default=4096, ge=64, description="of an answer")
    timeout_s: float = Field(default=180.0, gt=0, description="of one request")
    patience_s: float = Field(
        default=900.0, gt=0, description="with a server that is away or full, before the search stops; it can go on"
    )
    env_text: str | None = Field(
        default=None,
        description="a file with what the model is told of the env; default: its docstring and its source, without "
        "what speaks of its reward",
    )
    fitness: str | None = Field(
        default=None,
        description="module:function of a candidate's run directory -> how well its policy does the task; default: the "
        "mean return of its final evaluation",
    )
    call_s: float = Field(default=1e-3, gt=0, le=10, description="processor time that one call of a reward may take")
    side_by_side: int | None = Field(
        default=None, ge=1, le=256, description="candidates trained at once; default: as many as there are cores for"
    )
    train_timeout_s: float = Field(default=7200.0, gt=0, description="for one candidate's training")
    videos: bool = Field(default=True, description="film the best candidate of each iteration, of an env that renders")

    @field_validator("url", "key_variable", "fitness")
    @classmethod
    def _is_of_its_form(cls, value: str | None, info: ValidationInfo) -> str | None:
        pattern, wanted = _FORMS[str(info.field_name)]
        if value is not None and not re.fullmatch(pattern, value):
            raise ValueError(f"must be {wanted}")
        return value


class DesignRunConfig(RunConfig):
    """One search. Its other settings are its candidates'."""

    design: DesignConfig = Field(description="rewards that a language model writes")

    @model_validator(mode="after")
    def _writes_the_reward(self) -> Self:
        if self.reward is not None or self.preferences is not None:
            raise ValueError("design writes the reward: leave out reward and preferences")
        if self.actors.outside is not None:
            raise ValueError("actors.outside: a candidate is trained by actors of its own: leave it out")
        if self.design.fitness is None and not self.eval.episodes:
            raise ValueError("eval.episodes=0: candidates are judged by evaluations: set it, or design.fitness")
        return self

    @property
    def side_by_side(self) -> int:
        """Candidates trained at once."""
        if self.design.side_by_side is not None:
            return self.design.side_by_side
        busy = 1 if self.runtime == "serial" else 1 + self.actors.num
        return min(self.design.candidates, max(1, usable_cores() // busy))

    def candidate(self, name: str, code: str) -> dict[str, Any]:
        """The recipe of a candidate's run."""
        tree = parse_yaml(self.to_yaml(), "config.yaml").tree
        del tree["design"]
        scorer = {"kind": "code_reward", "code": code, "call_s": self.design.call_s}
        return {**tree, "name": name, "reward": {"scorer": scorer, "patience_s": PATIENCE_S}}

    def derived(self) -> dict[str, str]:
        design = self.design
        told = f"{design.candidates} in each of {design.iterations} iterations, {self.side_by_side} trained at once"
        return {"candidate rewards": told, **super().derived()}
