"""`rollcall reward serve`: the URL comes first, wrong input gets one line and exit code 2, SIGTERM an exit code 0."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.cli import main
from rollcall.deploy.cli.main import build_parser
from rollcall.deploy.tools.reward_serve import load_service_config
from rollcall.reward_service.client import RewardClient
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.service.service_config import ServiceConfig

YAML = """\
port: 0
models:
  main:
    kind: exact_match
    ignore_case: true
batching:
  max_wait_ms: 2
"""


def config_of(*arguments: str) -> ServiceConfig:
    return load_service_config(build_parser().parse_args(["reward", "serve", *arguments]))


def test_the_file_then_overrides_then_options(tmp_path: Path) -> None:
    (tmp_path / "service.yaml").write_text(YAML)
    config = config_of(
        *(str(tmp_path / "service.yaml"), "batching.max_wait_ms=3", "drain_timeout_s=1", "--port", "7"),
        *("--model", "second=number", "--model", f"third={tmp_path}", "--model", "own=my_module:score"),
        *("--default-model", "main", "--model-root", str(tmp_path)),
    )
    assert config.port == 7 and config.batching.max_wait_ms == 3 and config.drain_timeout_s == 1
    kinds = {name: scorer.kind for name, scorer in config.models.items()}
    assert kinds == {"main": "exact_match", "second": "number", "third": "reward_model", "own": "function"}
    assert config.default_model == "main" and config.model_roots == (tmp_path,)
    assert config_of("port=0", "--model", "m=length").port == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot: 1\n", r"prot = 1 \(.*service.yaml:1\): unknown key; did you mean port\?"),
        ("batching:\n  max_wait_ms: -1\n", r"batching.max_wait_ms = -1 \(.*service.yaml:2\): must be greater than"),
        ("models:\n  main:\n    kind: exact_mtch\n", r"models.main = .*service.yaml:2\): .*'exact_mtch'"),
        (
            "models:\n  main:\n    kind: exact_match\n    strip: 7x\n",
            r"models.main.strip = .7x. \(.*service.yaml:4\)",
        ),
        ("models:\n  a b: {kind: number}\n", r"models = .*service.yaml:1\): the name 'a b' must be"),
        ("default_model: x\n", r"default_model 'x' is none of the models: none"),
        ("port: [\n", r"service.yaml:2: not valid YAML"),
    ],
)
def test_a_wrong_setting_is_told_with_where_it_was_written(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "service.yaml").write_text(text)
    with pytest.raises(BadInput, match=said) as caught:
        config_of(str(tmp_path / "service.yaml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml"], "cannot read the settings nowhere.yaml"),
        (["--model", "main"], "must be NAME=KIND_OR_PATH"),
        (["--model", "main=no/where"], "no such directory"),
        (["--port", "70000"], "port = 70000 (command line)"),
        (["--host", "0.0.0.0", "--port", "0"], "a token is needed"),
        (["--token-file", "nowhere"], "token_file nowhere cannot be read"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main.main(["reward", "serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("rollcall: error: ") and said in captured.err and captured.err.count("\n") == 1
    assert not captured.out


def test_an_address_that_is_not_this_machines_cannot_be_served_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLCALL_REWARD_TOKEN", "t")
    assert main.main(["reward", "serve", "--host", "192.0.2.1", "--port", "0"]) == 2
    assert "host = '192.0.2.1', port = 0: cannot be served on" in capsys.readouterr().err


def test_a_port_in_use_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main.main(["reward", "serve", "--port", str(port), "--model", "m=number"]) == 2
    assert f"port = {port}: in use on 127.0.0.1; choose another, or 0" in capsys.readouterr().err


def test_it_says_its_url_first_scores_and_ends_by_sigterm_with_exit_code_0(tmp_path: Path) -> None:
    (tmp_path / "service.yaml").write_text(YAML)
    (tmp_path / "token").write_text("of-this-test\n")
    (tmp_path / "token").chmod(0o600)
    command = ["-m", "rollcall.deploy.cli", "reward", "serve", "service.yaml", "--token-file", "token"]
    command += ["--labels", "labels"]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        with RewardClient(url, "of-this-test") as client:
            client.wait_ready(60)
            items = [
                ScoreItem(id=name, prompt="p", response=name, metadata={"answer": "yes"}) for name in ("YES", "no")
            ]
            assert [result.score for result in client.score(items).results] == [1.0, 0.0]
        page = process.stdout.readline().removeprefix("labelling page: ").strip()
        assert page.startswith(url) and "text/html" in httpx.get(page).headers["content-type"]
        assert httpx.get(f"{url}/v1/preferences/progress").status_code == 401
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "of-this-test" not in errors and "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()
