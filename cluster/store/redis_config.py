"""Where the books of a run are kept, as a recipe has it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

URL_VARIABLE = "ROLLCALL_REDIS_URL"

PASSWORD_VARIABLE = "ROLLCALL_REDIS_PASSWORD_FILE"


class RedisConfig(BaseModel):
    """Where the run's books are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: SecretStr | None = Field(
        default=None, description=f"redis://... to use; none: ${URL_VARIABLE}, else a private server on this machine"
    )
    password_file: Path | None = Field(
        default=None,
        description=f"a file with that Redis's password, in place of one in the url; none: ${PASSWORD_VARIABLE}",
    )
    start_timeout_s: float = Field(
        default=10.0, gt=0, description="how long Redis may take to answer for the first time"
    )
    operation_timeout_s: float = Field(default=5.0, gt=0, description="how long one operation may take")
    reconnect_timeout_s: float = Field(
        default=60.0, gt=0, description="how long an outage may last before the run stops"
    )
