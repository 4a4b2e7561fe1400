"""What the configuration of every run has, whatever its kind: its name and seed, its length and its checkpoints, and
how it is written down; of runs with parameters, how these are optimised. What a kind adds is in its own config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from rollcall.cluster.checkpoint_config import CheckpointConfig
from rollcall.cluster.errors import BadInput
from rollcall.deploy.config import plugins
from rollcall.deploy.config.plugins import Plugin
from rollcall.deploy.config.recipe import recorders_config
from rollcall.deploy.config.recipe.recorders_config import RecordersConfig
from rollcall.deploy.config.settings import settings_hash, to_yaml
from rollcall.learners.loop.config import LearnerConfig

DEFAULT_NUM_CHECKPOINTS = 10

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # of a directory below runs/


class RootConfig(BaseModel):
    """One run. Immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    PLUGINS: ClassVar[Mapping[str, Plugin]] = {}  # sections of a plug-in's own model

    name: str = Field(default="run", pattern=RUN_NAME, description="the run directory is runs/<name>")
    seed: int = Field(default=0, ge=0, lt=2**63, description="every random stream of the run derives from it")
    total_learner_steps: int | None = Field(default=None, ge=1, description="the run ends after so many batches")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="when the run is saved")

    recorders: RecordersConfig = Field(
        default_factory=RecordersConfig,
        description="who else gets the run's numbers: wandb, mlflow, trackio, my_module:Class, or a list of them",
    )
    if_too_large: Literal["refuse", "warn"] = Field(
        default="refuse",
        description="what becomes of a run that rollcall plan finds too large for its machines: it is refused before "
        "anything is loaded, or it is said and tried",
    )

    @field_validator("recorders", mode="before")
    @classmethod
    def _recorders_by_name(cls, value: Any) -> Any:
        return section_settings(RecordersConfig, recorders_config.by_name(value))

    @property
    def algorithm_name(self) -> str:
        """What learns, as summaries and metrics call it."""
        raise NotImplementedError

    @property
    def begins_from(self) -> str | None:
        """The run or checkpoint whose weights the run begins with."""
        return None

    @property
    def taught_by(self) -> str | None:
        """The run or checkpoint whose policy is the run's expert."""
        return None

    @property
    def names_store(self) -> bool:
        """Whether the user said where the books are to be kept."""
        return False

    def resolved(self) -> Self:
        """With what is `auto` decided for this machine, so that the hash says which it was."""
        return self

    def derived(self) -> dict[str, str]:
        """What is not written in the recipe but follows from it, by name, for people."""
        raise NotImplementedError

    def checkpoint_every(self, steps: int) -> int:
        """Learner steps between checkpoints of a run of so many."""
        return self.checkpoint.every_steps or max(1, steps // DEFAULT_NUM_CHECKPOINTS)

    @property
    def config_hash(self) -> str:
        """SHA-256 over the canonical JSON of what determines the result: not the name, nor who watches."""
        return settings_hash(self.resolved().model_dump(mode="json"))

    def to_yaml(self) -> str:
        """A recipe that gives this configuration again, every setting written out."""
        return to_yaml(self.resolved().model_dump(mode="json"))


class OptimisedConfig(RootConfig):
    """One run whose learner has parameters."""

    learner: LearnerConfig = Field(default_factory=LearnerConfig, description="how the parameters are optimised")


def section_settings(model: type[BaseModel], value: Any) -> Any:
    """A section that may be written shorter, as its model. A validator that runs before pydantic's own hands on Python
    values, and of those a strict model takes no list for a tuple: so the section is read as JSON, as all others are."""
    if value is None or isinstance(value, BaseModel):
        return value
    return model.model_validate_json(json.dumps(value, default=str), strict=True)


def plugin_settings(plugin: Plugin, value: Any, info: ValidationInfo) -> Any:
    """A section as the settings of the plug-in that it names: those that the reader of a recipe has made of it already,
    where there is one.

    Raises:
      ValueError: in pydantic's manner.
    """
    if isinstance(value, BaseModel):
        return value
    if info.context is not None and info.field_name in info.context:
        read = info.context[info.field_name]
        if read is None:
            raise ValueError("is wrong, as its reader has said")
        return read
    try:
        model = plugins.declared(plugin, plugin_name_of(value)).Config
        settings = dict(value) if isinstance(value, Mapping) else {"name": value}
        return model.model_validate_json(json.dumps(settings), strict=True)
    except BadInput as error:
        raise ValueError(f"{error}") from None
    except ValidationError as error:
        raise ValueError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from None


AlgorithmSettings = Annotated[SerializeAsAny[BaseModel], BeforeValidator(partial(plugin_settings, plugins.ALGORITHM))]
MethodSettings = Annotated[SerializeAsAny[BaseModel], BeforeValidator(partial(plugin_settings, plugins.DIRECT_METHOD))]
OfflineSettings = Annotated[
    SerializeAsAny[BaseModel], BeforeValidator(partial(plugin_settings, plugins.OFFLINE_METHOD))
]
TaskSettings = Annotated[SerializeAsAny[BaseModel], BeforeValidator(partial(plugin_settings, plugins.TASK))]


def settings_name(settings: BaseModel) -> str:
    """What a plug-in is called whose settings these are."""
    return str(getattr(settings, "name", type(settings).__name__))


def plugin_name_of(value: Any) -> Any:
    """What a plug-in's section calls itself; anything at all if the user wrote anything at all."""
    if isinstance(value, BaseModel):
        return getattr(value, "name", None)
    return value.get("name") if isinstance(value, Mapping) else value
