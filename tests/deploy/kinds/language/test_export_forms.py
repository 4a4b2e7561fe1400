"""A language model's export in other forms: dtypes, adapters alone, its card, and on the hub."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from rollcall.cluster.checkpoint import CheckpointWriter, Manifest
from rollcall.cluster.errors import BadInput
from rollcall.deploy import export_policy
from rollcall.deploy.cli import main
from rollcall.deploy.drive.lifecycle import prepare
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.language.hub import push
from rollcall.deploy.kinds.language.model_card import Training, model_card
from rollcall.deploy.kinds.recipes import load_config
from rollcall.deploy.rundir.directories import claim_directory
from rollcall.deploy.rundir.files import begin_run
from rollcall.learners.collective import Collective
from tests.deploy.kinds.language.test_export import RECIPE
from tests.needs import require

require("peft", "transformers")

LORA = "policy.lora={rank: 8, alpha: 16}"
PROMPTS = ("3+4=", "9+9=")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sums.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(*overrides: str, size: float = 0.01) -> Path:
    """A run directory as training leaves it, its trained parameters moved by hand and by `size`."""
    config: Any = load_config("sums.yaml", overrides)
    directory = claim_directory(config.name, explicit=True)
    begin_run(config, directory, recipe="sums")
    parts = LanguageFactory(config, directory)
    prepare(parts)
    learner = parts.learner(Collective())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for model in learner._models.values():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    writer = CheckpointWriter(directory, keep=3)
    aside = writer.begin(2)
    learner.save(aside, learner.weights(epoch=1, version=2))
    manifest = Manifest(
        run_id="run",
        policy_id="policy",
        config_hash=config.config_hash,
        step=2,
        epoch=1,
        tier="exact",
        ledger={},
        driver={},
        files={},
    )
    writer.finish(aside, manifest)
    return directory


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        given = [tokenizer(prompt, return_tensors="pt", add_special_tokens=False) for prompt in PROMPTS]
        return torch.stack([model(**tokens).logits[0, -1].float() for tokens in given])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_rounded_to_the_dtype_once_and_the_config_says_which(work: Path, dtype: str) -> None:
    from transformers import AutoModelForCausalLM

    directory = trained()
    plain = load_file(export_policy(directory) / "model.safetensors")
    assert main.main(["export", str(directory), "other", "--dtype", dtype]) == 0
    found = load_file("other/model.safetensors")
    wanted = getattr(torch, dtype)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], tensor.to(wanted)) for name, tensor in plain.items())
    assert json.loads(Path("other/config.json").read_text())["dtype"] == dtype
    assert next(AutoModelForCausalLM.from_pretrained("other", dtype="auto").parameters()).dtype == wanted


def test_a_number_that_half_precision_does_not_have_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = trained(size=1e6)
    assert main.main(["export", str(directory), "other", "--dtype", "float16"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has numbers beyond its range: take bfloat16" in line and not Path("other").exists()


@pytest.mark.parametrize(
    "overrides",
    [(), ("policy.lora.targets=[q_proj, down_proj]",), ("algorithm={name: lm_ppo, kl_coef: 0.1}",)],
    ids=["all", "some", "with-a-critic"],
)
def test_peft_puts_the_adapters_beside_the_model_and_has_the_exported_policy(
    work: Path, overrides: tuple[str, ...]
) -> None:
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = trained(LORA, *overrides)
    merged, adapters = export_policy(directory), export_policy(directory, adapters=True)
    assert adapters == directory / "adapters"
    config = PeftConfig.from_pretrained(str(adapters))
    assert config.base_model_name_or_path == str((directory / "model").resolve())
    base = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    before = logits(base, tokenizer)
    adapted = PeftModel.from_pretrained(base, adapters)
    expected = logits(AutoModelForCausalLM.from_pretrained(merged), tokenizer)
    assert torch.allclose(logits(adapted, tokenizer), expected, atol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-3)
    folded = adapted.merge_and_unload()
    whole = dict(AutoModelForCausalLM.from_pretrained(merged).named_parameters())
    assert all(torch.allclose(tensor, whole[name], atol=1e-6) for name, tensor in folded.named_parameters())


@pytest.mark.long
def test_vllm_serves_the_adapters_beside_the_model_as_the_exported_policy(work: Path) -> None:
    """Greedy answers and their log-probabilities: those of transformers with the merged model."""
    require("vllm")
    directory = trained(LORA, size=0.3).resolve()
    merged, adapters = export_policy(directory), export_policy(directory, adapters=True)
    from tests.deploy.kinds.language.vllm_with_adapters import answers

    plain = answers(directory / "model", None, PROMPTS)
    adapted = answers(directory / "model", adapters, PROMPTS)
    whole = answers(merged, None, PROMPTS)
    assert [tokens for tokens, _ in adapted] == [tokens for tokens, _ in whole]
    assert [tokens for tokens, _ in adapted] != [tokens for tokens, _ in plain]
    for (_, one), (_, other) in zip(adapted, whole, strict=True):
        assert np.allclose(one, other, atol=2e-2)


def test_the_card_says_how_the_model_came_about_and_nothing_of_the_machine(work: Path) -> None:
    directory = trained("name=sums")
    summary = {
        "learner_steps": 2,
        "first_eval": {"mean": 0.25},
        "final_eval": {"mean": 0.75, "n": 20, "unit": "exact match"},
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    text = (export_policy(directory) / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["library_name"] == "transformers" and "grpo" in header["tags"] and "base_model" not in header
    assert "# sums\n" in text and "| exact match | 0.75, 0.25 before (n = 20) |" in text
    assert str(work) not in text
    (directory / "summary.json").write_text(json.dumps(summary | {"learner_steps": 9}))  # of a later version
    assert "exact match" not in (export_policy(directory) / "README.md").read_text()


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("gpt2", "gpt2"),
        ("", None),
        ("/home/me/models/gone", None),
        ("./gone", None),
        ("models/of/mine", None),
    ],
)
def test_a_card_names_a_base_model_of_the_hub_and_no_path_that_is_gone(
    work: Path, base: str, named: str | None
) -> None:
    training = Training(work, "grpo", "jsonl", base, {})
    text = model_card(training, marker={"policy_version": 2, "config_hash": "0" * 64}, dtype="float32", adapters=False)
    assert yaml.safe_load(text.split("---")[1]).get("base_model") == named
    assert named is not None or not base or base not in text


class Hub(BaseHTTPRequestHandler):
    """What the hub's client asks of it for an upload of small files."""

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub: Any = self.server
        found: dict[str, Any] = {}
        if self.path == "/api/repos/create":
            hub.made = json.loads(body)
            found = {"url": f"{hub.address}/me/sums"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            found = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            found = {"commitUrl": f"{hub.address}/me/sums/commit/{'0' * 40}", "commitOid": "0" * 40}
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from huggingface_hub import constants

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.made = {}, None
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def test_a_push_uploads_what_was_exported_to_a_private_repository(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = trained()
    with hub(monkeypatch) as server:
        assert main.main(["export", str(directory), "--push", "me/sums"]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith("/me/sums")
        assert server.made["visibility"] == "private" and server.made["name"] == "sums"
        exported = {path.name: path.read_bytes() for path in (directory / "policy").iterdir()}
        assert server.files == exported


def test_pushed_adapters_name_no_path_of_the_machine(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = trained("policy.lora.rank=2")
    with hub(monkeypatch) as server:
        assert main.main(["export", str(directory), "--adapters", "--push", "me/sums"]) == 0
        assert "adapter_config.json" in server.files
        assert not any(str(work).encode() in content for content in server.files.values())


@pytest.mark.parametrize(
    ("repository", "remedy"),
    [("me/sums", "the hub cannot be reached"), ("me/s ms", "no name of a repository")],
)
def test_a_push_that_fails_is_one_line_that_says_where_the_export_is(
    work: Path, monkeypatch: pytest.MonkeyPatch, repository: str, remedy: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (work / "policy").mkdir()
    with pytest.raises(BadInput) as caught:
        push(work / "policy", repository, public=False)
    assert remedy in str(caught.value) and "\n" not in str(caught.value)
    assert remedy.startswith("no name") or f"hf upload {repository} {work / 'policy'}" in str(caught.value)
