"""The service's settings, composed of its parts' own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from rollcall.cluster.inputs.strict import Strict
from rollcall.cluster.store.redis_address import url_with_password
from rollcall.cluster.store.redis_config import URL_VARIABLE
from rollcall.reward_service.labelling.redis_queue import LabellingConfig
from rollcall.reward_service.scheduling.batch_queue import BatchingConfig
from rollcall.reward_service.scheduling.cache import CacheConfig
from rollcall.reward_service.scheduling.dispatcher import RequestLimits
from rollcall.reward_service.scheduling.registry import MAX_MODELS, NAME
from rollcall.reward_service.scorers.scorer_config import ScorerConfig
from rollcall.reward_service.service.guard import GuardConfig

DEFAULT_PORT = 8470


class ServiceRedisConfig(Strict):
    """The Redis that services share scores through, and that preferences are kept in."""

    url: SecretStr | None = Field(default=None, description=f"redis://... to use; none: ${URL_VARIABLE}, else no Redis")

    def resolved(self) -> str | None:
        """With its password, be it from a file.

        Raises:
          BadInput: when that file cannot be used.
        """
        url = os.environ.get(URL_VARIABLE) if self.url is None else self.url.get_secret_value()
        return url_with_password(url) if url else None


class ConnectionConfig(Strict):
    """What uvicorn allows a connection."""

    max_connections: int = Field(default=4096, ge=1, description="open at once; beyond them: a bare 503")
    keep_alive_s: int = Field(default=30, ge=1, description="how long an idle connection is kept")
    max_header_bytes: int = Field(default=16_384, ge=1024, description="of a request's head; beyond them: a bare 400")


class ServiceConfig(Strict):
    """`rollcall reward serve`."""

    host: str = Field(default="127.0.0.1", min_length=1, description="the address; beyond loopback a token is needed")
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535, description="0: a free one")
    models: Mapping[str, ScorerConfig] = Field(default_factory=dict, description="scorers, by the names they go by")
    default_model: str | None = Field(
        default=None, description="scores requests that name none; by default the only one there is"
    )
    model_roots: tuple[Path, ...] = Field(
        default=(), description="directories below which POST /v1/models/NAME:load finds models; none: it loads none"
    )
    labels: Path | None = Field(
        default=None, description="directory of preferences to serve beside the models, with the labelling page"
    )
    labelling: LabellingConfig = LabellingConfig()
    token_file: Path | None = Field(default=None, description="holds the bearer token; none: $ROLLCALL_REWARD_TOKEN")
    open_metrics: bool = Field(default=True, description="serve /metrics without the token")
    drain_timeout_s: float = Field(default=30.0, ge=0, description="how long work under way may take at the end")
    batching: BatchingConfig = BatchingConfig()
    cache: CacheConfig = CacheConfig()
    redis: ServiceRedisConfig = ServiceRedisConfig()
    requests: RequestLimits = RequestLimits()
    intake: GuardConfig = GuardConfig()
    connections: ConnectionConfig = ConnectionConfig()

    @field_validator("models")
    @classmethod
    def _names_can_be_labels(cls, models: Mapping[str, ScorerConfig]) -> Mapping[str, ScorerConfig]:
        wrong = [name for name in models if not NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"the name {wrong[0]!r} must be 1 to 64 letters, digits, '.', '_' and '-'")
        if len(models) > MAX_MODELS:
            raise ValueError(f"{len(models)} models, at most {MAX_MODELS} are served")
        return models

    @model_validator(mode="after")
    def _default_is_served(self) -> Self:
        if self.default_model is not None and self.default_model not in self.models:
            known = ", ".join(self.models) or "none"
            raise ValueError(f"default_model {self.default_model!r} is none of the models: {known}")
        return self
