"""A recipe's `recorders` section: who else gets a run's numbers, beside the files in its directory. Knows no tracker;
that is deploy/report/trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

TRACKERS = ("wandb", "mlflow", "trackio")  # by their sections' names; each is also its package's, and its extra's


class TensorBoardConfig(BaseModel):
    """Event files in <run>/tensorboard, which every run writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    axis: Literal["learner_steps", "env_steps"] = Field(
        default="learner_steps",
        description="what curves are drawn over; env_steps: also evaluations (of a language run: generated tokens)",
    )


class WandbConfig(BaseModel):
    """Weights & Biases. Its own environment variables (WANDB_API_KEY, WANDB_BASE_URL) hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: str = Field(default="rollcall", min_length=1, description="the project")
    entity: str | None = Field(default=None, min_length=1, description="user or team; none: your default one")
    group: str | None = Field(default=None, min_length=1, description="runs that belong together: seeds, say")
    tags: tuple[str, ...] = Field(default=(), description="to find it by")
    mode: Literal["auto", "online", "offline"] = Field(
        default="auto",
        description="offline: kept in <run>/wandb, for wandb sync; auto: online where somebody is logged in",
    )


class MlflowConfig(BaseModel):
    """MLflow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tracking_uri: str | None = Field(
        default=None,
        min_length=1,
        description="a server, or sqlite:///FILE; none: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db where you are",
    )
    experiment: str = Field(default="rollcall", min_length=1, description="the experiment")
    tags: dict[str, str] = Field(default_factory=dict, description="to find it by")

    @field_validator("tracking_uri")
    @classmethod
    def _no_password(cls, uri: str | None) -> str | None:
        if uri is not None and "@" in uri and urlsplit(uri).password is not None:
            raise ValueError("a password would be kept in the run: set MLFLOW_TRACKING_USERNAME and _PASSWORD")
        return uri


class TrackioConfig(BaseModel):
    """Trackio, which keeps runs on this machine ($TRACKIO_DIR) unless a Space is named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: str = Field(default="rollcall", min_length=1, description="the project")
    group: str | None = Field(default=None, min_length=1, description="runs that belong together: seeds, say")
    space_id: str | None = Field(default=None, min_length=1, description="OWNER/SPACE of Hugging Face to send it to")
    open_timeout_s: float = Field(default=120.0, gt=0, description="how long a run that begins waits for a Space")


class RecordersConfig(BaseModel):
    """`recorders: wandb` and `recorders: [wandb, my_module:MyRecorder]` are short for sections with their defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensorboard: TensorBoardConfig = Field(default_factory=TensorBoardConfig, description="TensorBoard, always on")
    wandb: WandbConfig | None = Field(default=None, description="Weights & Biases (the extra wandb)")
    mlflow: MlflowConfig | None = Field(default=None, description="MLflow (the extra mlflow)")
    trackio: TrackioConfig | None = Field(default=None, description="Trackio (the extra trackio)")
    own: tuple[str, ...] = Field(
        default=(), description="your own, as module:Class: deploy/report/recorders.py says what a recorder is"
    )
    close_timeout_s: float = Field(
        default=60.0, gt=0, description="how long a run that has ended waits for a tracker to take the rest"
    )


def by_name(value: Any) -> Any:
    """The section of a name, or of a list of names and sections.

    Raises:
      ValueError: for a name of nobody's.
    """
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping):
        return {name: {} if name in TRACKERS and section is True else section for name, section in value.items()}
    if not isinstance(value, list | tuple):
        return value
    sections: dict[str, Any] = {}
    for item in value:
        if isinstance(item, Mapping):
            sections |= by_name(item)
        elif not isinstance(item, str) or (":" not in item and item not in (*TRACKERS, "tensorboard")):
            raise ValueError(f"no recorder is called {item!r}: wandb, mlflow, trackio, or your own as module:Class")
        elif ":" in item:
            sections["own"] = [*sections.get("own", []), item]
        else:
            sections.setdefault(item, {})
    return sections
