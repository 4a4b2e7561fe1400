"""`rollcall bench gym`: the peers' work is the recipe's own, recipes without an equal are refused in one line, and what
a program tells is what is compared."""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.config.recipe.run_config import RunConfig
from rollcall.deploy.kinds.recipes import load_config
from rollcall.deploy.tools.bench import arguments, peer_work, peers
from rollcall.deploy.tools.bench import gym as bench_gym
from rollcall.deploy.tools.bench.learnt_alike import compare
from rollcall.deploy.tools.bench.result import compared, last_lines
from tests.needs import require_for


def work(recipe: str, peer: str, *overrides: str) -> dict[str, Any]:
    require_for(recipe)
    config = load_config(recipe, [*(bench_gym.CARTPOLE if recipe == "cartpole-ppo" else ()), *overrides])
    assert isinstance(config, RunConfig)
    found = peer_work.peer_work(config, peer)
    assert json.loads(json.dumps(found)) == found, "it goes to the program as JSON"
    return found


@pytest.mark.parametrize(("envs", "epochs"), [(16, 4), (1024, 1)])
@pytest.mark.parametrize("peer", ["rejax", "cleanrl", "envpool"])
def test_the_work_is_the_recipes(peer: str, envs: int, epochs: int) -> None:
    found = work("cartpole-ppo", peer, f"actors.num_envs={envs}", f"algorithm.epochs={epochs}")
    expected = {"num_envs": envs, "num_steps": 128, "num_minibatches": 8, "epochs": epochs, "hidden_sizes": [64, 64]}
    assert found.items() >= (expected | {"env": "CartPole-v1", "activation": "tanh", "learning_rate": 1e-3}).items()
    assert found["warm_up_steps"] == 2 * 128 * envs


@pytest.mark.parametrize("peer", ["sb3", "sbx"])
def test_stable_baselines_names_the_same_work_in_its_own_words(peer: str) -> None:
    found = work("cartpole-ppo", peer, "actors.num_envs=64")
    expected = {"n_steps": 128, "batch_size": 1024, "n_epochs": 4, "gamma": 0.98, "gae_lambda": 0.8, "clip_range": 0.2}
    assert found["algorithm"].items() >= expected.items()
    sac = work("pendulum-sac", peer)
    assert sac["algorithm"].items() >= {"train_freq": 1, "gradient_steps": 1, "learning_starts": 100}.items()
    assert sac["net_arch"] == {"pi": [256, 256], "qf": [256, 256]}
    dqn = work("cartpole-dqn", peer)  # 8 envs, a quarter of an update for each of their steps
    assert dqn["algorithm"].items() >= {"train_freq": 1, "gradient_steps": 2, "target_update_interval": 512}.items()
    one_env = work("cartpole-dqn", peer, "actors.num_envs=1", "actors.num_shards=1")
    assert one_env["algorithm"].items() >= {"train_freq": 4, "gradient_steps": 1}.items()


def test_a_game_is_played_by_envpool_as_by_ale() -> None:
    found = work("pong-ppo", "envpool")
    assert found["env"] == "Pong-v5"
    assert found["pool"] == {
        **{"repeat_action_probability": 0.0, "img_height": 60, "img_width": 60},
        **{"episodic_life": False, "reward_clip": True, "stack_num": 4},
    }
    sticky = work("pong-ppo", "envpool", "env.kwargs={}")
    assert sticky["pool"]["repeat_action_probability"] == 0.25, "as the id says"


@pytest.mark.parametrize(
    ("recipe", "peer", "overrides", "text"),
    [
        ("mountaincar-rnd", "sb3", (), "no equal of rnd, but of ppo, a2c, sac, dqn"),
        ("cartpole-trpo", "cleanrl", (), "no equal of trpo, but of ppo"),
        ("cartpole-a2c", "sbx", (), "no equal of a2c"),
        ("pendulum-sac", "rejax", (), "no equal of sac"),
        ("cartpole-rainbow", "sb3", (), "no equal of policy.q"),
        ("cartpole-masked-ppo", "sb3", (), "no equal of policy.recurrent"),
        ("cartpole-ppo-kl", "sbx", (), "no equal of algorithm.kl_penalty"),
        ("cartpole-preferences", "sb3", (), "no equal of env.fixed_episode_steps"),
        ("pong-ppo", "sb3", (), "games of Atari are compared with --peer envpool alone"),
        ("pong-ppo", "envpool", ("env.kwargs={noop_max: 1}",), "no equal of env.kwargs.noop_max: leave it out"),
        ("halfcheetah-ppo", "envpool", (), "normalises nothing: choose --peer cleanrl"),
        ("halfcheetah-ppo", "rejax", (), "gymnax has no equal of this env: it has CartPole-v1"),
    ],
)
def test_a_recipe_without_an_equal_is_refused_in_one_line(
    recipe: str, peer: str, overrides: tuple[str, ...], text: str
) -> None:
    with pytest.raises(BadInput, match=rf"--peer {peer}: .*{text}") as caught:
        work(recipe, peer, *overrides)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ("arithmetic-grpo", "for language: rollcall bench lm arithmetic-grpo"),
        ("pendulum-iql", "recipes of control whose actors step envs"),
        ("cartpole-bc", "recipes of control whose actors step envs"),
        ("cartpole-dagger", "no expert to teach the run"),
    ],
)
def test_what_is_no_run_of_actors_and_envs_is_refused(recipe: str, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        bench_gym.main(argparse.Namespace(recipe=recipe, overrides=[], peer=[], learn=None, repeats=1, json=True))


def test_peers_are_named_in_one_list_or_one_after_another() -> None:
    parser = argparse.ArgumentParser()
    arguments.add_benches(parser.add_subparsers())
    asked = parser.parse_args(["gym", "--peer", "sb3,rejax", "--peer", "cleanrl", "--learn", "150_000"])
    assert (asked.peer, asked.learn) == (["sb3", "rejax", "cleanrl"], 150_000)
    assert parser.parse_args(["gym"]).peer == []


def test_every_peer_is_told_and_the_first_also_by_itself() -> None:
    result = compared(200.0, [90.0, 110.0, 100.0], {"sb3": [10.0, 30.0, 20.0], "rejax": [200.0, 200.0, 400.0]})
    assert (result["peer"], result["peer_achieved"], result["ratio_to_peer"]) == ("sb3", 20, 5.0)
    assert result["peers"] == {"sb3": {"achieved": 20, "ratio": 5.0}, "rejax": {"achieved": 200, "ratio": 0.5}}
    lines = last_lines(result | {"limiter": "x", "unit": "env steps/s"})
    assert lines[-1] == "rejax            200 env steps/s: Rollcall is 0.50 times as fast"
    alone = compared(200.0, [100.0], {})
    assert (alone["peer"], alone["ratio_to_peer"], alone["peers"]) == (None, None, {})


CLOCK = """
import sys, time
from clock import Clock
clock, taken = Clock(warm_up_steps=20), 0
while not clock.is_over(taken):
    time.sleep(0.5 if taken < 20 else 0.02)
    taken += 10
clock.tell([taken])
"""


@pytest.mark.parametrize(("seconds", "learn_steps"), [(0.4, None), (None, 100)])
def test_the_programs_clock_leaves_out_the_warm_up(
    seconds: float | None, learn_steps: int | None, tmp_path: Path
) -> None:
    """Pieces of 10 steps take 0.5 s each at first and 0.02 s later. A busy machine makes them longer, not shorter."""
    (tmp_path / "program.py").write_text(CLOCK)
    (tmp_path / "clock.py").symlink_to(peers.PROGRAMS / "clock.py")
    found = peers.Peer("p", Path(sys.executable), tmp_path / "program.py").measure(
        {"seconds": seconds, "learn_steps": learn_steps}
    )
    assert 25 < found.per_second <= 500, "with the warm-up it would be below 20"
    assert found.returns[0] == learn_steps or learn_steps is None


def test_programs_import_nothing_of_ours_and_every_peer_has_one() -> None:
    for path in peers.PROGRAMS.glob("*.py"):
        names = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name and name.startswith("rollcall")], path
    assert {kind.program for kind in peers.PEERS.values()} <= {path.stem for path in peers.PROGRAMS.glob("*.py")}
    for name, kind in peers.PEERS.items():
        assert all("==" in package for package in kind.packages), f"{name}: its packages are pinned"


@pytest.mark.long
def test_ours_and_a_peer_in_cleanrls_form_learn_cartpole_alike(tmp_path: Path) -> None:
    """CleanRL's form needs torch and gymnasium alone, which are here. One seed each of 30,000 steps: random play gives
    22, and both are far beyond 60 by then."""
    here = peers.Peer("cleanrl", Path(sys.executable), peers.PROGRAMS / "cleanrl_ppo.py")
    settings = ("runtime=serial", "eval.episodes=0", "total_env_steps=30_000", "checkpoint.every_steps=1000")
    config = load_config("cartpole-ppo", [*bench_gym.CARTPOLE, *settings])
    assert isinstance(config, RunConfig)
    result = compare(config, [peer_work.Rival(here, peer_work.peer_work(config, "cleanrl"))], 1, tmp_path)
    assert result["returns"].keys() == {"rollcall", "cleanrl"}
    assert all(found[0] > 60 for found in result["returns"].values()), result


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("recipe", ["cartpole-a2c", "cartpole-dqn", "cartpole-reinforce"])
def test_parts_and_whole_of_any_control_recipe_are_measured(recipe: str, tmp_path: Path) -> None:
    program = """
from rollcall.deploy import cli
from rollcall.deploy.tools.bench import gym as bench_gym
if __name__ == "__main__":
    bench_gym.PART_S = bench_gym.WHOLE_S = 0.1
    cli.console()
"""
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "program.py", "bench", "gym", recipe, "runtime=serial", "--repeats", "1", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["bound"] > 0 and result["achieved"] > 0 and result["peers"] == {}


@pytest.mark.parametrize(
    ("act_us", "learn_us", "shards", "cores", "said"),
    [
        (9.0, 10.0, 4, 2, "actors.num=1 beside the learner: 100,000 env steps/s at best; more actors gain nothing"),
        (
            40.0,
            10.0,
            8,
            2,
            "actors.num=1 beside the learner: 25,000 env steps/s at best; a core more for an actor: +100%",
        ),
        (
            40.0,
            10.0,
            8,
            3,
            "actors.num=2 beside the learner: 50,000 env steps/s at best; a core more for an actor: +50%",
        ),
        (40.0, 10.0, 8, 16, "actors.num=4 beside the learner: 100,000 env steps/s at best; more actors gain nothing"),
        (40.0, 10.0, 2, 16, "actors.num=2 beside the learner: 50,000 env steps/s at best; more take more env shards"),
        (40.0, 10.0, 1, 1, "actors.num=1 beside the learner: 25,000 env steps/s at best; more take more env shards"),
    ],
)
def test_the_plan_is_as_many_actors_as_pay(act_us: float, learn_us: float, shards: int, cores: int, said: str) -> None:
    config: Any = load_config("cartpole-ppo", ["actors.num_envs=16", f"actors.num_shards={shards}", "actors.num=1"])
    parts = bench_gym.Parts(env_us=1.0, inference_us=1.0, act_us=act_us, learn_us=learn_us)
    assert bench_gym.plan(parts, config, cores).startswith(said)


def test_what_cannot_be_compiled_is_measured_uncompiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["actors.num_envs=4", "actors.num_shards=1", "actors.unroll_length=8", "policy.recurrent=gru"]
    benches, fastest = bench_gym._candidates("cartpole-ppo", [*small, "algorithm.num_minibatches=2"], tmp_path)
    assert (list(benches), fastest) == (["off"], "off")
    assert "a gru" in capsys.readouterr().err
