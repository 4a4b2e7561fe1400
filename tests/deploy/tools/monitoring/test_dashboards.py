"""The dashboards: what is committed is what the code makes; panels can be read; queries ask for what exists."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from rollcall.cluster.metrics.names import NAMES, name_of
from rollcall.cluster.metrics.run_metrics import metric_of
from rollcall.cluster.metrics.table import DRIVER
from rollcall.deploy.report.tags import tag
from rollcall.deploy.tools.monitoring import check as monitor_check
from rollcall.deploy.tools.monitoring import files as monitoring_files
from rollcall.deploy.tools.monitoring.metric_names import names_in, samples
from rollcall.reward_service.scheduling.metrics import SERVICE

_METRICS = {metric.name: metric for metric in DRIVER}
# What a query asks for -> the key of metrics.jsonl; of those that have a label of their own, nothing.
_KEY_OF = {sample: key for key in NAMES if len(fed := metric_of(key)) == 1 for sample in _METRICS[fed[0]].samples}
_PER_SECOND = {"env_steps": "steps_per_s"}  # a counter is shown as its rate
BOARDS = monitor_check.dashboards()
PANELS = [
    pytest.param(panel, id=f"{name.removesuffix('.json')}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]


def test_what_is_committed_is_what_the_code_makes() -> None:
    stale = [str(path) for path in monitoring_files.drifted()]
    assert not stale, f"run python -m rollcall.deploy.tools.monitoring.files: {stale}"


def test_there_is_a_board_for_each_question() -> None:
    assert {board["title"] for board in BOARDS.values()} == {
        "Rollcall / Run overview",
        "Rollcall / Control",
        "Rollcall / Language",
        "Rollcall / Reward service",
        "Rollcall / Cluster and health",
    }
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)


def test_the_overview_asks_whether_it_is_healthy_learns_and_what_limits_it_in_this_order() -> None:
    rows = [panel for panel in BOARDS["run-overview.json"]["panels"] if panel["type"] == "row"]
    assert [row["title"] for row in rows[:3]] == ["Is it healthy?", "Is it learning?", "What limits it?"]
    assert rows[2]["gridPos"]["y"] <= 16, "the third question is below the first screen"


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_has_a_unit_a_description_a_legend_and_colours(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 5 and panel["title"]
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    steps = defaults["thresholds"]["steps"]
    assert steps[0]["value"] is None and all(step["color"] for step in steps)
    values = [step["value"] for step in steps[1:]]
    assert values == sorted(values)
    references = [target["refId"] for target in panel["targets"]]
    assert references and len(set(references)) == len(references)
    for target in panel["targets"]:
        assert target["legendFormat"] not in ("", "__auto")
        assert target["datasource"]["uid"] == "${datasource}"
    if panel["type"] == "timeseries":
        assert panel["options"]["legend"]["showLegend"]


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_panels_do_not_overlap_nor_leave_the_page(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    numbers = set()
    for panel in BOARDS[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        numbers.add(panel["id"])
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    assert len(numbers) == len(BOARDS[name]["panels"])


def test_every_question_asks_only_for_metrics_that_somebody_serves() -> None:
    asked = list(monitor_check.questions())
    assert len(asked) > 100
    for question in asked:
        names = names_in(question.expression)
        assert names, question
        assert names - samples().keys() == set(), question
        assert "$" not in question.expression, question


def test_every_metric_of_ours_is_shown_or_alerted_on() -> None:
    asked = set().union(*(names_in(question.expression) for question in monitor_check.questions()))
    unseen = [metric.family for metric in (*DRIVER, *SERVICE) if not asked & set(metric.samples)]
    assert sorted(unseen) == [
        "rollcall_duplicates_refused",  # the audit's
        "rollcall_last_checkpoint_step",
        "rollcall_outside_actors",  # of few runs
        "rollcall_outside_refused",
        "rollcall_outside_requests",
        "rollcall_reward_batch_retries",
        "rollcall_reward_model_changes",  # the marks are dated by their timestamp
        "rollcall_reward_model_loads",
        "rollcall_reward_queue_tokens",
        "rollcall_tickets_per_step",
    ]


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_a_board_lets_one_choose_its_source_and_what_is_shown_and_every_choice_is_used(name: str) -> None:
    choices = [item["name"] for item in BOARDS[name]["templating"]["list"]]
    assert choices[:2] == ["datasource", "run"]
    text = json.dumps(BOARDS[name]["panels"])
    used = set(re.findall(r"\$\{?(\w+)\}?", text)) - {"__rate_interval", "__range"}
    assert used == set(choices)


def test_runs_boards_mark_versions_restarts_checkpoints_and_model_swaps() -> None:
    for name in ("run-overview.json", "control.json", "language.json", "cluster-health.json"):
        marks = {mark["name"]: mark for mark in BOARDS[name]["annotations"]["list"]}
        assert marks.keys() == {"Weight versions", "Restarts", "Checkpoints", "Model swaps"}
        assert all(mark["enable"] and mark["titleFormat"] for mark in marks.values())
        # Thousands of versions are no marks: each twentieth of the run is.
        assert "floor(20 *" in marks["Weight versions"]["expr"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ('rate(a_total{b="c_d"}[5m])', {"a_total"}),
        ("sum by (x, y) (a) / on (x) group_left (z) b", {"a", "b"}),
        ("histogram_quantile(0.9, sum by (le) (rate(a_bucket[$__rate_interval])))", {"a_bucket"}),
        ("time() - a > 10 * run:b:mean1h unless c == 1", {"a", "run:b:mean1h", "c"}),
        ('count(ALERTS{x=~"a|b"}) or vector(0)', {"ALERTS"}),
        ("(deriv(a[10m]) > 0) and changes(floor(20 * b)[1m:]) > 1e6", {"a", "b"}),
    ],
)
def test_the_metrics_of_a_query_are_found(query: str, names: set[str]) -> None:
    assert names_in(query) == names


def test_no_two_numbers_have_one_title() -> None:
    titles = [name.title for name in NAMES.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_of_one_number_is_called_as_the_report_calls_it(panel: dict[str, Any]) -> None:
    asked = {name for target in panel["targets"] for name in names_in(target["expr"])}
    keys = {_KEY_OF.get(name) for name in asked}
    if len(keys) == 1 and (key := keys.pop()) is not None:
        wanted = {name_of(key).title, name_of(_PER_SECOND.get(key, key)).title}
        assert panel["title"] in wanted


def test_docs_name_every_number_with_its_tag_and_its_metric() -> None:
    page = monitoring_files.metrics_page()
    for key, name in NAMES.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{key}` | {name.title} | {name.unit} |")]
        assert f"`{tag(key)}`" in row
    assert "| `rollout/return_mean` | `rollcall_return_mean` |" in page
    assert "| `run/tokens_per_s` |  |" in page
    assert "`rollcall_tokens_total` (generated) |" in page
