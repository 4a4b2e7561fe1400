"""A control policy as an ONNX file: the same actions as the policy's, in a program that knows neither torch nor us."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.deploy import export_policy, load_policy
from rollcall.deploy.cli import main
from rollcall.deploy.kinds.control import onnx_export
from tests.needs import require, require_module
from tests.runs import TWO_STEPS

require("onnxruntime")

MASKED = "tests.deploy.kinds.control.masked_env:Masked"
KINDS: dict[str, tuple[str, ...]] = {
    "discrete": (),
    "continuous": ("env=Pendulum-v1",),
    "recurrent": ("policy.recurrent=gru", "policy.recurrent_size=8"),
    "lstm": ("policy.recurrent=lstm", "policy.recurrent_size=8", "env=Pendulum-v1"),
    "masked": (f"env={MASKED}",),
    "bfloat16": (  # its file is in float32
        "env=tests.deploy.kinds.control.frames_env:Frames",
        "policy.image_dtype=bfloat16",
        "policy.normalise_observations=false",
    ),
    "masked-recurrent": (f"env={MASKED}", "policy.recurrent=gru", "policy.recurrent_size=8"),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("onnx")
    (folder / "small.yaml").write_text(TWO_STEPS)
    with chdir(folder):
        yield folder


def trained(name: str, *overrides: str) -> Path:
    if not Path("runs", name).exists():
        assert main.main(["train", "small.yaml", f"name={name}", *overrides]) == 0
    return Path("runs", name)


def session(path: Path) -> Any:
    runtime = require_module("onnxruntime")
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_of_each_kind_agrees_with_its_file_on_a_thousand_observations(
    work: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(kind, *KINDS[kind])
    capsys.readouterr()
    assert main.main(["export", kind]) == 0
    where, found = capsys.readouterr().out.splitlines()
    assert where == str(run / "policy.onnx")
    assert found.startswith("agrees with the policy on 1,000 observations, within ")
    assert float(found.rpartition(" ")[2]) <= 1e-5


def test_the_file_acts_as_load_policy_does_on_observations_of_its_own(work: Path) -> None:
    """The definition, without the export's own check: raw observations in, the env's actions out, any batch."""
    for kind in ("discrete", "continuous"):
        run = trained(kind, *KINDS[kind])
        policy, file = load_policy(run), session(export_policy(run))
        generator = np.random.default_rng(0)
        raw = generator.normal(size=(1000, *(policy.observation_space.shape or ()))).astype(np.float32)
        found = file.run(["action"], {"observation": raw})[0]
        expected = np.concatenate([policy.act(part) for part in np.split(raw, 10)])
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5
        assert np.array_equal(file.run(["action"], {"observation": raw[:1]})[0], found[:1])


def test_the_normaliser_is_in_the_file(work: Path) -> None:
    """Observations far from the mean and near to it are told apart as the run's statistics say."""
    file = session(export_policy(trained("discrete")))
    checkpoint = sorted(Path("runs/discrete/checkpoints").iterdir())[-1]
    from safetensors.numpy import load_file

    weights = load_file(checkpoint / "weights.safetensors")
    count = next(
        value for name, value in weights.items() if name.endswith("observation_normaliser.of_observation.count")
    )
    mean = next(value for name, value in weights.items() if name.endswith("observation_normaliser.of_observation.mean"))
    assert count > 0 and np.abs(mean).max() > 0
    near, far = (
        file.run(["logits"], {"observation": (mean + offset).astype(np.float32)[None]})[0] for offset in (0.0, 1e6)
    )
    assert not np.allclose(near, far)
    # Normalised values are clipped: beyond the clip nothing changes any more.
    farther = file.run(["logits"], {"observation": (mean + 1e7).astype(np.float32)[None]})[0]
    assert np.array_equal(far, farther)


def test_a_masked_policys_file_never_takes_what_the_mask_forbids(work: Path) -> None:
    file = session(export_policy(trained("masked", *KINDS["masked"])))
    assert {given.name for given in file.get_inputs()} == {"seen", "kind", "action_mask"}
    generator = np.random.default_rng(0)
    for allowed in range(3):
        given = {
            "seen": generator.normal(size=(20, 3)).astype(np.float32),
            "kind": generator.integers(4, size=20),
            "action_mask": np.eye(3, dtype=bool)[np.full(20, allowed)],
        }
        assert (file.run(["action"], given)[0] == allowed).all()


def test_a_recurrent_policys_file_carries_its_state_from_call_to_call(work: Path) -> None:
    run = trained("recurrent", *KINDS["recurrent"])
    policy, file = load_policy(run), session(export_policy(run))
    generator = np.random.default_rng(0)
    state, starts = np.zeros((1, 3, 8), np.float32), np.ones(3, bool)
    for _ in range(50):
        shown = generator.normal(size=(3, 4)).astype(np.float32)
        given = {"observation": shown, "state": state, "episode_starts": starts}
        action, state = file.run(["action", "next_state"], given)
        assert np.array_equal(action, policy.act(shown, episode_starts=starts))
        starts = generator.random(3) < 0.2
    again = file.run(["next_state"], {"observation": shown, "state": state, "episode_starts": np.ones(3, bool)})[0]
    fresh = file.run(["next_state"], {"observation": shown, "state": 0 * state, "episode_starts": np.zeros(3, bool)})[0]
    assert np.array_equal(again, fresh)  # where an episode starts, what was before is forgotten


def test_the_file_runs_where_neither_torch_nor_rollcall_is_imported(work: Path) -> None:
    path = export_policy(trained("discrete"), "alone.onnx")
    code = (
        "import sys, numpy, onnxruntime\n"
        f"file = onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])\n"
        "print(file.run(['action'], {'observation': numpy.zeros((2, 4), 'float32')})[0].shape)\n"
        "assert not {'torch', 'rollcall'} & sys.modules.keys()\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "(2,)"
    assert [path.name for path in Path(".").iterdir() if "making" in path.name] == []


def test_the_file_says_of_which_run_and_version_it_is(work: Path) -> None:
    run = trained("discrete")
    facts = json.loads(session(export_policy(run)).get_modelmeta().custom_metadata_map["rollcall_policy"])
    assert (facts["run"], facts["env"], facts["policy_version"]) == ("discrete", "CartPole-v1", 2)
    older = export_policy(run / "checkpoints" / "step-00000001", onnx="older.onnx")
    facts = json.loads(session(older).get_modelmeta().custom_metadata_map["rollcall_policy"])
    assert facts["policy_version"] == 1


def test_an_earlier_export_is_replaced_and_nothing_else_is(work: Path) -> None:
    run = trained("discrete")
    assert export_policy(run, onnx="again.onnx") == export_policy(run, onnx="again.onnx")
    Path("thesis.onnx").write_text("all I have")
    with pytest.raises(BadInput, match=r"thesis\.onnx: is no export of Rollcall's: nothing is written over it"):
        export_policy(run, "thesis.onnx")
    assert Path("thesis.onnx").read_text() == "all I have"


def test_a_file_that_disagrees_with_the_policy_is_not_written(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained("continuous", *KINDS["continuous"])
    real = onnx_export._write

    def wrong(greedy: Any, *rest: Any) -> None:
        with torch.no_grad():
            greedy.module.policy_head.bias += 1e-3
        real(greedy, *rest)

    monkeypatch.setattr(onnx_export, "_write", wrong)
    with pytest.raises(RollcallError, match=r"differ by .* in '(action|mean)' \(at most 1e-05\): nothing was written"):
        export_policy(run, "wrong.onnx")
    assert not list(Path(".").glob("*wrong.onnx*"))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["discrete", "somewhere"], ["a control run: a directory is for language models", "FILE.onnx"]),
        (["discrete", "--dtype", "bfloat16"], ["--dtype is for language models"]),
        (["discrete", "--adapters"], ["--adapters is for language models"]),
        (["discrete", "--push", "me/it"], ["--push is for language models"]),
        (
            ["discrete", "there", "--onnx", "f.onnx"],
            ["--onnx = 'f.onnx' and the directory 'there'", "give one of them"],
        ),
        (["discrete", "--onnx", "small.yaml"], ["small.yaml: is no export of Rollcall's"]),
        (["discrete", "--onnx", "small.yaml/p.onnx"], ["cannot write small.yaml/p.onnx"]),
        (["discrte"], ["did you mean discrete?"]),
    ],
)
def test_what_cannot_be_exported_gets_one_line(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    trained("discrete")
    capsys.readouterr()
    assert main.main(["export", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and all(part in lines[0] for part in parts), lines


def test_without_the_packages_the_line_says_which_extra_has_them(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BadInput, match=r"pip install 'rollcall-rl\[onnx\]'"):
        export_policy(trained("discrete"))
