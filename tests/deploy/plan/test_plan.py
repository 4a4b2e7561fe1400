"""What a run is found to need, what is said of it, and which runs are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rollcall.deploy.cli.main import main
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.kinds.language.needs import step_of
from rollcall.deploy.kinds.recipes import load_recipe, load_supervised
from rollcall.deploy.plan import machine as machines
from rollcall.deploy.plan.machine import Machine, memory_limit, oom_kills, this_machine, visible_gpus
from rollcall.deploy.plan.model_size import saved_bytes, size_of_directory, size_of_tiny
from rollcall.deploy.plan.needs import GIB, MIB, Needs, Part, Role, parts
from rollcall.deploy.plan.planning import LEAST_STORE, Plan, plan_for
from rollcall.deploy.plan.text import as_json, essence, whole
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.tiny_model import write_tiny_model

LARGE = Machine("this machine", 64 * GIB, 60 * GIB, 32 * GIB, 500 * GIB)
TINY = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 64}


def plan_of(*overrides: str, recipe: str = "arithmetic-grpo", machine: Machine = LARGE, tmp: Path) -> Plan:
    found = load_recipe(recipe, overrides)
    return plan_for(found.config, found.kind.make(found.config, tmp / "run").needs(), [machine])


def test_a_tiny_model_is_counted_as_it_will_be_written_without_making_it(tmp_path: Path) -> None:
    write_tiny_model(
        tmp_path / "model",
        alphabet="0123456789+=",
        seed=0,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=64,
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    size = size_of_tiny(TINY, vocab_size=15)
    assert size.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert size == size_of_directory(tmp_path / "model")
    assert size.cache_per_token == 2 * 2 * 1 * 32  # keys and values, layers, heads, numbers of a head


def test_what_a_pass_keeps_is_counted_as_autograd_keeps_it() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    rows = torch.zeros(10, 8)
    # The input of each linear layer, and of the activation its output, which is the second layer's input.
    assert saved_bytes(layers, lambda: layers(rows)) == 10 * (8 + 32) * 4


@pytest.mark.parametrize(
    "recipe", ["cartpole-ppo", "pong-ppo", "arithmetic-ppo", "synthetic-dpo", "synthetic-reward", "calculator-grpo"]
)
def test_every_kind_of_run_has_a_plan(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    plan = plan_of(recipe=recipe, tmp=tmp_path)
    assert not plan.problems() and plan.needs.checkpoint_bytes > 0
    assert "it fits" in whole(plan) and plan.needs.model in essence(plan)[0]
    assert json.loads(json.dumps(as_json(plan)))["fits"] is True


def test_a_warm_start_alone_is_planned_as_one_process(tmp_path: Path) -> None:
    found = load_supervised("arithmetic-grpo")
    needs = found.kind.make(found.config, tmp_path / "run").needs()
    assert [role.name for role in needs.roles] == ["trainer"] and not needs.on_ray


def size_of(plan: Plan, name: str) -> int:
    return next(plan.memory_of(role) for role in plan.needs.roles if role.name == name)


def test_a_critic_and_a_reference_are_counted(tmp_path: Path) -> None:
    large = "policy.tiny={hidden_size: 512, num_layers: 8}"
    alone = plan_of(large, tmp=tmp_path)
    with_reference = plan_of(large, "algorithm.kl_coef=0.1", tmp=tmp_path)
    frozen = size_of_tiny({"hidden_size": 512, "num_layers": 8}, 20).num_parameters * 4
    assert size_of(with_reference, "learner process") - size_of(alone, "learner process") == pytest.approx(frozen, 0.1)
    with_critic = plan_of(large, recipe="arithmetic-ppo", tmp=tmp_path)
    assert size_of(with_critic, "learner process") > size_of(alone, "learner process") + 3 * frozen


def test_a_smaller_token_budget_makes_the_learner_smaller_and_nobody_else(tmp_path: Path) -> None:
    whole_batch, parts = plan_of(tmp=tmp_path), plan_of("algorithm.token_budget=512", tmp=tmp_path)
    assert size_of(parts, "learner process") < size_of(whole_batch, "learner process") - 100 * MIB
    assert size_of(parts, "actor") == size_of(whole_batch, "actor")


def test_a_run_that_cannot_fit_names_role_size_and_what_makes_it_smaller(tmp_path: Path) -> None:
    small = replace(LARGE, memory_bytes=16 * GIB, free_bytes=16 * GIB)
    (problem,) = plan_of("actors.engine.kv_cache_gib=20", machine=small, tmp=tmp_path).problems()
    first, second = problem.splitlines()
    assert first.startswith(
        "this machine has 16.0 GiB of memory, too little for the actor, 20.7 GiB (KV cache 20.0 GiB"
    )
    assert second.startswith("what makes it smaller: actors.engine.kv_cache_gib") and "if_too_large=warn" in second
    (problem,) = plan_of("actors.num=12", machine=small, tmp=tmp_path).problems()
    assert "12 actors of 1.7 GiB" in problem and "actors.num" in problem


def test_memory_that_others_use_is_a_warning_and_no_reason_to_refuse(tmp_path: Path) -> None:
    busy = plan_of(machine=replace(LARGE, free_bytes=GIB), tmp=tmp_path)
    assert not busy.problems()
    assert any("1.0 GiB are free now" in line for line in busy.warnings())


def test_a_disk_that_the_checkpoints_do_not_fit_on_is_said() -> None:
    needs = Needs("m", (Role("trainer", (Part("program", GIB),)),), checkpoint_bytes=40 * GIB, checkpoints_kept=3)
    (problem,) = Plan(needs, [replace(LARGE, disk_bytes=100 * GIB)]).problems()
    assert "writes 160.0 GiB (4 checkpoints of 40.0 GiB)" in problem and "checkpoint.keep" in problem


@pytest.mark.parametrize(
    ("published", "shared", "memory", "size"),
    [
        (4 * MIB, 32 * GIB, 64 * GIB, LEAST_STORE),
        (2 * GIB, 32 * GIB, 64 * GIB, 10 * GIB),  # half a billion parameters: four versions of them, and room
        (2 * GIB, 9 * GIB, 64 * GIB, int(0.9 * 9 * GIB)),  # as much as there is, where that is enough
        (4 * MIB, 64 * MIB, 64 * GIB, LEAST_STORE),  # Docker's default: Ray puts it on the disk
        (0, 0, 1 * GIB, GIB // 2),
    ],
)
def test_the_object_store_is_as_large_as_what_goes_through_it(
    published: int, shared: int, memory: int, size: int
) -> None:
    plan = Plan(Needs("m", (), published_bytes=published), [Machine("here", memory, memory, shared, 0)])
    assert plan.store_bytes == size


def test_too_little_shared_memory_is_said_in_a_line() -> None:
    plan = Plan(Needs("m", (), published_bytes=GIB), [replace(LARGE, shared_bytes=64 * MIB)])
    (warning,) = plan.warnings()
    assert "/dev/shm has 64 MiB free" in warning and "--shm-size" in warning


def test_a_container_has_what_its_control_group_lets_it_have(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n")
    assert memory_limit(tmp_path) == 2 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # version 1: none
    assert memory_limit(tmp_path) is None
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    assert memory_limit(tmp_path) == GIB


def test_processes_that_the_kernel_ended_are_counted(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\noom 4\noom_kill 3\n")
    (tmp_path / "vmstat").write_text("nr_free_pages 12\noom_kill 2\n")
    assert oom_kills(tmp_path, tmp_path / "vmstat") == 3
    assert oom_kills(tmp_path / "none", tmp_path / "none") == 0


def test_only_gpus_that_are_visible_count() -> None:
    answer = "0, GPU-aaaa-1, 81559\n1, GPU-bbbb-2, 40960\n"
    assert visible_gpus(answer, None) == (81559 * MIB, 40960 * MIB)
    assert visible_gpus(answer, "1") == (40960 * MIB,)
    assert visible_gpus(answer, "GPU-bbbb,0") == (40960 * MIB, 81559 * MIB)
    assert visible_gpus(answer, "") == visible_gpus(answer, "7,0") == ()


def test_this_machine_has_memory_and_a_disk(tmp_path: Path) -> None:
    found = this_machine(tmp_path / "not" / "there")
    assert 0 < found.free_bytes <= found.memory_bytes and found.disk_bytes > 0


def test_the_command_prints_the_plan_and_says_by_its_exit_code_whether_it_fits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "cartpole-ppo"]) == 0
    assert "learner process" in capsys.readouterr().out
    assert main(["plan", "arithmetic-grpo", "actors.engine.kv_cache_gib=100000", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["fits"] is False


def test_a_run_that_cannot_fit_is_refused_before_anything_is_loaded_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROLLCALL_RUNS", str(tmp_path))
    assert main(["train", "arithmetic-grpo", "actors.engine.kv_cache_gib=100000"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "too little for the actor" in said[0] and "what makes it smaller: " in said[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ("actors.engine.weight_transfer=ipc",),
            "weight_transfer=ipc sends weights from GPU to GPU, and there is none",
        ),
        (
            ("actors.engine.tensor_parallel_size=2", "actors.engine.weight_transfer=nccl"),
            "tensor_parallel_size=2 needs weight_transfer=object_store",
        ),
    ],
)
def test_a_way_of_the_weights_that_cannot_be_is_refused_in_one_line_by_plan_and_train(
    settings: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ROLLCALL_RUNS", str(tmp_path))
    monkeypatch.setattr(machines, "gpu_memory", tuple)
    assert main(["train", "arithmetic-grpo", *settings]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not list(tmp_path.iterdir())
    assert main(["plan", "arithmetic-grpo", *settings]) == 2
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


def test_gpus_that_a_private_cluster_will_never_have_are_refused_by_plan_and_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the run would be, when its cluster has started. Actors beyond min_actors need not be there then."""
    monkeypatch.setenv("ROLLCALL_RUNS", str(tmp_path))
    monkeypatch.setattr(machines, "gpu_memory", tuple)
    asked = ("runtime=ray", "actors.num=4", "cluster.min_actors=2", "cluster.learner.num_gpus=1")
    of_actors = ("cluster.actors.num_gpus=0.5", "cluster.evaluation.num_gpus=0")
    said = "this machine has no GPUs, and cluster.*.num_gpus ask for 2: lower them, or name a cluster"
    for command in (["plan", "cartpole-ppo"], ["train", "cartpole-ppo", "--dry-run"]):
        assert main([*command[:2], *asked, *of_actors, *command[2:]]) == 2
        printed = capsys.readouterr()
        assert said in printed.out + printed.err
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # what a cluster has, or will have, it says itself
    assert main(["train", "cartpole-ppo", *asked, *of_actors, "--dry-run"]) == 0
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(machines, "gpu_memory", lambda: (80 << 30, 80 << 30))
    assert main(["plan", "cartpole-ppo", *asked, *of_actors]) == 0


def test_logits_on_a_gpu_have_the_bounds_of_a_gpu(tmp_path: Path) -> None:
    words = "policy.tiny={vocab_size: 300, hidden_size: 64}"
    small, large = (replace(LARGE, gpu_bytes=(gib * GIB,), num_gpus=1.0) for gib in (16, 80))
    config = load_recipe("arithmetic-grpo", [words]).config
    assert isinstance(config, LanguageConfig)
    size = replace(size_of_tiny({}, 300), vocab_size=151_936)
    step = step_of(size, config.policy, tokens=20_000, predicted=20_000)
    assert step.logits_on_gpu is not None
    role = Role("learner process", parts(Part("logits", step.logits, on_gpu=step.logits_on_gpu)), 1, "learner")
    plans = [plan_for(config, Needs("a model", (role,)), [machine]) for machine in (LARGE, small, large)]
    held = [plan.needs.roles[0].device_bytes for plan in plans]
    assert held[0] == step.logits  # there is no GPU
    # 1/32 of its memory, half of which is used where nothing comes after the output layer; and the matrix's gradient
    gradient = 2 * 4 * 151_936 * size.hidden_size
    assert held[1:] == [pytest.approx(gib * GIB / 64 + gradient, rel=0.05) for gib in (16, 80)]


def test_a_model_that_caps_its_logits_needs_all_of_the_workspace() -> None:
    size = replace(size_of_tiny({}, 300), vocab_size=151_936)
    both = [
        step_of(replace(size, works_on_logits=works), LMPolicyConfig(), tokens=64, predicted=64)
        for works in (False, True)
    ]
    assert 2 * both[0].logits == both[1].logits == 64 * 151_936 * 4 * 4


def test_a_warm_start_that_is_larger_than_what_comes_after_it_counts(tmp_path: Path) -> None:
    settings = ("data.generate={pairs: 240, eval_pairs: 8}", "batch_size=2", "algorithm.budget=64")
    small, large = (
        plan_of(*settings, f"policy.warm_start={{steps: 5, batch_size: {size}}}", recipe="synthetic-dpo", tmp=tmp_path)
        for size in (2, 200)
    )
    assert small.memory_bytes < large.memory_bytes
    none = plan_of(*settings, "policy.warm_start=null", recipe="synthetic-dpo", tmp=tmp_path)
    assert none.memory_bytes == small.memory_bytes  # its reference is more than two demonstrations
    assert "policy.warm_start.token_budget" in large.smaller(large.needs.roles)


def test_an_evaluator_of_few_rows_has_the_logits_of_few_sequences(tmp_path: Path) -> None:
    settings = ("policy.tiny={vocab_size: 300}", "actors.engine.max_num_seqs=8192", "actors.prompts_per_batch=1024")
    plan = plan_of(*settings, "eval.num_rows=16", tmp=tmp_path)
    assert size_of(plan, "evaluator") < size_of(plan, "actor")


def test_of_a_cluster_it_is_said_that_nodes_to_come_are_not_counted() -> None:
    needs = Needs("a model", (Role("driver", (Part("program", GIB),)),))
    said = "2 are here now; those that an autoscaler would add are not counted"
    assert not any(said in line for line in whole(Plan(needs, [LARGE])))
    assert any(said in line for line in whole(Plan(needs, [replace(LARGE, name=name) for name in ("a", "b")])))
