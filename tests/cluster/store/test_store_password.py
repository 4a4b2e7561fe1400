"""Redis's password out of a file: taken, refused in one line, and never shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.cluster.store.redis_config import PASSWORD_VARIABLE, URL_VARIABLE, RedisConfig
from rollcall.cluster.store.store import Store, inspect_store, open_store


@pytest.fixture
def server(redis_store: Store, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """(url without a password, the password) of a server that wants one."""
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    address: dict[str, Any] = redis_store.client.get_connection_kwargs()
    return f"unix://{address['path']}", address["password"]


def test_the_password_of_a_file_opens_the_store_and_is_written_nowhere(
    server: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, password = server
    secret = tmp_path / "password"
    secret.write_text(password + "\n")
    run = tmp_path / "run"
    run.mkdir()
    config = RedisConfig.model_validate({"url": url, "password_file": secret})
    with open_store(config, run) as store:
        assert store.call(lambda client: client.ping())
        assert not store.private
    assert password not in repr(config) + config.model_dump_json()
    assert all(password not in path.read_text() for path in run.rglob("*") if path.is_file())
    monkeypatch.setenv(PASSWORD_VARIABLE, str(secret))  # an audit from elsewhere
    with inspect_store(RedisConfig(), run) as store:
        assert store.call(lambda client: client.ping())


def refusal(url: str | None, password_file: Path, folder: Path) -> str:
    folder.mkdir()
    with pytest.raises(BadInput) as caught:
        open_store(RedisConfig.model_validate({"url": url, "password_file": password_file}), folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_password_that_cannot_be_used_is_one_line_that_does_not_show_it(
    server: tuple[str, str], tmp_path: Path
) -> None:
    url, password = server
    wrong, empty = tmp_path / "wrong", tmp_path / "empty"
    wrong.write_text("let-me-in")
    empty.write_text("\n")
    refused = refusal(url, wrong, tmp_path / "a")
    assert "refuses us" in refused and "let-me-in" not in refused
    assert "is empty" in refusal(url, empty, tmp_path / "b")
    assert "No such file" in refusal(url, tmp_path / "absent", tmp_path / "c")
    both = refusal(url.replace("//", f"//:{password}@"), wrong, tmp_path / "d")
    assert "has a password too" in both and password not in both
    assert "of which Redis" in refusal(None, wrong, tmp_path / "e")
