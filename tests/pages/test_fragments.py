"""The YAML and JSON of pages, and the protocol of outside actors: each fragment is read by what reads it in a run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rollcall.actors.outside import protocol
from rollcall.actors.tasks.jsonl import Jsonl, JsonlConfig
from rollcall.cluster.messages.wire import to_bytes
from rollcall.deploy.config.settings import shipped_recipes
from rollcall.deploy.preferences.text_labels import is_labelled
from rollcall.deploy.tools.manifests import check as manifests
from rollcall.learners.data.replay_config import ReplayConfig
from tests.deploy.gateway.test_gateway import Acting, Open, acting, factory, opened  # noqa: F401
from tests.deploy.tools.manifests.manifest_builds import K8S
from tests.needs import needs
from tests.pages.blocks import NAMES, Block, blocks, fragments, json_values
from tests.pages.elsewhere import WHOLE
from tests.pages.running import home_of_its_own
from tests.runs import config_of

# Sections of a recipe, by the page that shows them: the shipped recipe in which they are put.
BASES = {
    "README.md": "",
    "docs/algorithms/dqn.md": "cartpole-dqn",
    "docs/algorithms/replay.md": "cartpole-dqn",
    "docs/data.md": "arithmetic-grpo",
    "docs/migration/trl.md": "",
    "docs/reward_design.md": "cartpole-ppo",
    "docs/rewards.md": "arithmetic-grpo",
    "docs/tasks.md": "arithmetic-grpo",
    "docs/tracking.md": "cartpole-ppo",
}
MODULE = """\
def score(prompt, response, answer):
    return 0.0

reward = score

class MyRecorder:
    on_start = on_step = on_eval = on_event = lambda self, record: None
    close = lambda self: None
"""


def of_sort(sort: str) -> Iterator[Block]:
    for name in NAMES:
        if name not in WHOLE:
            yield from (block for block in blocks(name) if block.sort == sort)


YAML = {
    f"{block.page}:{number}": (block.page, fragment)
    for block in of_sort("yaml")
    for number, fragment in enumerate(fragments(block.text), 1)
    if "apiVersion" not in fragment
}


@pytest.mark.parametrize("place", YAML)
def test_a_fragment_of_a_recipe_is_one(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a recipe of its kind. What it says is what the run has."""
    page, fragment = YAML[place]
    home_of_its_own(tmp_path, monkeypatch)
    Path("my_module.py").write_text(MODULE)
    for block in blocks(page):
        if block.sort == "python" and page == "docs/tasks.md":
            Path("my_task.py").write_text(block.text)
    base = yaml.safe_load(shipped_recipes()[BASES[page]].read_text()) if BASES[page] else {}
    Path("recipe.yaml").write_text(yaml.safe_dump({**base, **fragment}))
    config = config_of("recipe.yaml").model_dump(mode="json")
    for key, value in fragment.items():
        if isinstance(value, str | int | float) and not isinstance(config[key], dict | list):
            assert config[key] == value


def test_the_section_of_kept_experience_shows_the_defaults() -> None:
    _, fragment = YAML["docs/algorithms/replay.md:1"]
    assert ReplayConfig.model_validate(fragment["replay"]) == ReplayConfig()
    assert set(fragment["replay"]) == set(ReplayConfig.model_fields)


@needs("kubectl")
def test_the_overlay_of_the_page_is_built_and_nothing_is_wrong_with_it(tmp_path: Path) -> None:
    (block,) = (block for block in of_sort("yaml") if "apiVersion" in block.text)
    for name in ("k8s", "grafana", "prometheus"):
        shutil.copytree(K8S.parent / name, tmp_path / name, ignore=shutil.ignore_patterns("overlays", "secrets"))
    own = tmp_path / "k8s" / "overlays" / "mine"
    own.mkdir(parents=True)
    (own / "kustomization.yaml").write_text(block.text.replace("REGISTRY", "registry.example.org"))
    documents, warnings = manifests.read(str(own))
    assert not warnings and manifests.check(documents, {}) == []
    claims = [document for document in documents if document["kind"] == "PersistentVolumeClaim"]
    assert claims and all(claim["spec"]["storageClassName"] == "YOUR-SHARED-STORAGE" for claim in claims)
    assert "registry.example.org/rollcall:0.2.0" in yaml.safe_dump_all(documents)
    components = re.findall(r"# any of: (.*)", block.text)[0].split()
    assert sorted(components) == sorted(path.name for path in (K8S / "components").iterdir() if path.is_dir())


def test_all_json_of_pages_is_read_by_one_of_these_tests() -> None:
    assert {block.page for block in of_sort("json")} == {"docs/data.md", "docs/reward_models.md"}
    assert {block.page for block in of_sort("protocol")} == {"docs/outside_actors.md"}


def test_rows_of_a_task_are_read_as_the_page_says(tmp_path: Path) -> None:
    (block,) = (block for block in blocks("docs/data.md") if block.sort == "json")
    rows = json_values(block.text)
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, fragment = YAML["docs/data.md:1"]
    settings = fragment["task"] | {"path": path, "num_eval_rows": 0}
    read = Jsonl(JsonlConfig.model_validate(settings)).rows("train")
    assert [row.answer for row in read] == ["4", "4", "4"]
    assert all("2+2?" in str(row.messages or row.prompt) for row in read)


def test_texts_with_labels_are_told_from_comparisons(tmp_path: Path) -> None:
    (block,) = (block for block in blocks("docs/reward_models.md") if block.sort == "json")
    path = tmp_path / "reviews.jsonl"
    path.write_text(block.text)
    assert len(json_values(block.text)) == 2 and is_labelled(path)


# The protocol of outside actors: the page's answers have the keys of a real gateway's.


def protocol_block(request: str) -> str:
    (block,) = (block for block in of_sort("protocol") if block.text.startswith(request))
    return block.text


def values_shown(text: str) -> list[Any]:
    """The JSON values of a block, in their order; `...` is left out of them."""
    plain = re.sub(r"\{\.\.\.[^{}]*\}", "{}", re.sub(r"(\d)\.\.\.", r"\1", text))
    found, place = [], plain.find("{")
    while place >= 0:
        value, end = json.JSONDecoder().raw_decode(plain, place)
        found.append(value)
        place = plain.find("{", end)
    return found


def agrees(shown: Any, real: Any, place: str) -> None:
    if isinstance(shown, dict) and shown:
        assert isinstance(real, dict) and set(shown) == set(real), f"{place}: {sorted(shown)} and {sorted(real)}"
        for key, inner in shown.items():
            agrees(inner, real[key], f"{place}.{key}")
    else:
        assert type(shown) is type(real), f"{place}: {shown!r} and {real!r}"


def test_the_protocols_answers_are_those_of_a_gateway(opened: Open, acting: Acting) -> None:  # noqa: F811
    asked, shown = values_shown(protocol_block("POST /v1/join"))
    status, _, body = opened.ask("POST", "/v1/join", json.dumps(asked).encode())
    assert status == 200
    joined = json.loads(body)
    agrees(shown, {**joined, "run": {"run": "its name, which opening.py puts there", **joined["run"]}}, "join")
    actor = {"Rollcall_Actor": joined["actor"]}

    opened.issue(0)
    asked, shown = values_shown(protocol_block("POST /v1/lease"))
    status, _, body = opened.ask("POST", "/v1/lease", json.dumps(asked).encode(), **actor)
    assert status == 200
    leased = json.loads(body)
    agrees(shown, leased, "lease")
    lease = {"Rollcall_Lease": leased["lease"]}

    asked, shown = values_shown(protocol_block("POST /v1/renew"))
    status, _, body = opened.ask("POST", "/v1/renew", json.dumps(asked).encode(), **actor, **lease)
    assert status == 200
    agrees(shown, json.loads(body), "renew")

    status, headers, _ = opened.ask("GET", "/v1/weights", **actor)
    assert status == 200
    (tag,) = re.findall(r"200  ETag: (\S+)", protocol_block("GET /v1/weights"))
    assert re.sub(r"\d+", "N", headers["ETag"]) == re.sub(r"\d+", "N", tag)
    status, _, _ = opened.ask("GET", "/v1/weights", **actor, If_None_Match=headers["ETag"])
    assert status == 304

    asked, shown = values_shown(protocol_block("POST /v1/leave"))
    status, _, body = opened.ask("POST", "/v1/leave", json.dumps(asked).encode(), **actor)
    assert status == 200
    agrees(shown, json.loads(body), "leave")


def test_the_record_of_a_trajectory_has_the_pages_fields(opened: Open, acting: Acting) -> None:  # noqa: F811
    """What the page lists as its metadata, and no array that the page does not name."""
    opened.issue(0)
    leased = acting.client.lease(0.0)
    encoded = to_bytes(acting.experience(leased))
    metadata = json.loads(encoded[8 : 8 + int.from_bytes(encoded[:8], "little")])["__metadata__"]
    text = protocol_block("POST /v1/trajectory")
    fields, taken = values_shown(text)
    real = json.loads(metadata["fields"])
    for name in ("rollcall_version", "record"):
        assert re.search(rf"{name}\s+{re.escape(metadata[name])}$", text, re.MULTILINE), name
    assert set(fields["trajectory"]) <= set(real["trajectory"])
    shown, made = fields["trajectory"]["unroll"], real["trajectory"]["unroll"]
    assert set(shown) <= set(made) and set(shown["steps"]) <= set(made["steps"])
    assert set(fields["episodes"][0]) <= {"episode_return", "length"}
    actor = acting.client._actor[protocol.ACTOR_HEADER]
    status, _, body = opened.ask("POST", "/v1/trajectory", encoded, Rollcall_Actor=actor, Rollcall_Lease=leased.secret)
    assert status == 200
    agrees(taken, json.loads(body), "trajectory")
