"""`rollcall reward label`: from a file to people and back, as a user types it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from rollcall.deploy.cli.main import main
from rollcall.reward_service.preferences.files import PreferencePair, read_preferences

TRUE_REWARD = (
    "def short(prompt, response):\n    return -len(response)\n\n\ndef broken(prompt, response):\n    return None\n"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "label_reward", raising=False)
    (tmp_path / "label_reward.py").write_text(TRUE_REWARD)
    lines = [{"prompt": f"{n}", "chosen": "long " * (n + 2), "rejected": "short", "group": "g"} for n in range(12)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_comparisons_go_in_and_labels_come_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reward", "label", "import", "in.jsonl", "labels", "--unlabelled"]) == 0
    assert main(["reward", "label", "synth", "labels", "--true-reward", "label_reward:short", "--limit", "5"]) == 0
    assert main(["reward", "label", "synth", "labels", "--true-reward", "label_reward:short", "--rater", "other"]) == 0
    assert "12 comparisons to label" in (said := capsys.readouterr().out) and "7 labels by other" in said
    assert main(["reward", "label", "export", "labels", "out.jsonl.gz"]) == 0
    found = read_preferences(Path("out.jsonl.gz"))
    assert len(found) == 12
    for preference in found:
        assert isinstance(preference, PreferencePair) and (preference.chosen, preference.group) == ("short", "g")
    assert main(["reward", "label", "import", "out.jsonl.gz", "again"]) == 0
    assert main(["reward", "label", "import", "out.jsonl.gz", "again"]) == 0
    assert "0 labels, 12 were there before" in capsys.readouterr().out
    assert main(["reward", "label", "export", "again", "again.jsonl"]) == 0
    assert read_preferences(Path("again.jsonl")) == found
    capsys.readouterr()
    assert main(["reward", "label", "agreement", "again", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["num_labels"], figures["num_raters"], figures["alpha"]) == (12, 2, None)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["export", "nowhere", "out.jsonl"], "nowhere: no labelling directory"),
        (["import", "none.jsonl", "labels"], "none.jsonl: cannot be read"),
        (["import", "bad.jsonl", "labels"], "bad.jsonl:2: rejected: Field required"),
        (["import", "in.jsonl", "http://127.0.0.1:9"], "give --unlabelled"),
        (["synth", "labels", "--true-reward", "label_reward:nothing"], "has no 'nothing'"),
        (["synth", "labels", "--true-reward", "label_reward:broken"], "the true reward said None"),
        (["synth", "labels", "--true-reward", "label_reward:short", "--error-rate", "2"], "--error-rate"),
        (["serve", "labels", "--labels-per-comparison", "0"], "--labels-per-comparison"),
        (["serve", "labels", "--host", "0.0.0.0"], "beyond loopback a token is needed"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], why: str
) -> None:
    monkeypatch.delenv("ROLLCALL_REWARD_TOKEN", raising=False)
    (here / "bad.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "p", "chosen": "a"}\n')
    if "label_reward:broken" in arguments:
        assert main(["reward", "label", "import", "in.jsonl", "labels", "--unlabelled"]) == 0
    capsys.readouterr()
    assert main(["reward", "label", *arguments]) == 2
    errors = capsys.readouterr().err
    assert why in errors and errors.count("\n") == 1


@pytest.fixture
def served(here: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "rollcall.deploy.cli", "reward", "label", "serve", "labels", "--port", "0"]
    token = here / "token"
    token.write_text("a-secret\n")
    token.chmod(stat.S_IRUSR | stat.S_IWUSR)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--token-file", str(token)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def test_a_service_labels_while_it_runs_and_ends_when_told(
    here: Path, served: tuple[subprocess.Popen[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    process, page = served
    url = page.removesuffix("/label")
    assert "Which is better?" in httpx.get(page, timeout=30).text
    assert main(["reward", "label", "import", "in.jsonl", url, "--unlabelled", "--token-file", "token"]) == 0
    synth = ["synth", url, "--true-reward", "label_reward:short", "--token-file", "token", "--limit", "7"]
    assert main(["reward", "label", *synth]) == 0
    assert main(["reward", "label", "synth", url, "--true-reward", "label_reward:short"]) == 1  # no token: refused
    assert "401" in capsys.readouterr().err
    assert main(["reward", "label", "import", "in.jsonl", "labels"]) == 2  # it is being served
    assert "in use" in capsys.readouterr().err
    assert main(["reward", "label", "export", "labels", "out.jsonl"]) == 0  # reading is no matter
    assert len(read_preferences(Path("out.jsonl"))) == 7
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "a-secret" not in output + errors
    assert main(["reward", "label", "synth", "labels", "--true-reward", "label_reward:short"]) == 0
    assert "5 labels" in capsys.readouterr().out
