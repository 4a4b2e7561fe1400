"""rejax's PPO with gymnax's envs: acting, envs and updates are one XLA program, compiled beforehand."""

from __future__ import annotations

import jax
from clock import WORK, Clock
from rejax import get_algo

ITERATIONS = 16  # of one call: acting and learning, without a word from Python


def main() -> None:
    algo = get_algo("ppo").create(
        env=WORK["env"],
        agent_kwargs={"hidden_layer_sizes": tuple(WORK["hidden_sizes"]), "activation": WORK["activation"]},
        num_envs=WORK["num_envs"],
        num_steps=WORK["num_steps"],
        num_minibatches=WORK["num_minibatches"],
        num_epochs=WORK["epochs"],
        learning_rate=WORK["learning_rate"],
        gamma=WORK["gamma"],
        gae_lambda=WORK["gae_lambda"],
        clip_eps=WORK["clip_range"],
        vf_coef=WORK["value_coef"],
        ent_coef=WORK["entropy_coef"],
        max_grad_norm=WORK["max_grad_norm"],
        normalize_observations=WORK["normalise_observations"],
        normalize_rewards=WORK["normalise_rewards"],
        total_timesteps=WORK["num_envs"] * WORK["num_steps"],
        eval_freq=WORK["num_envs"] * WORK["num_steps"],
    )
    state = jax.jit(algo.init_state)(jax.random.PRNGKey(WORK["seed"]))
    iterations = jax.jit(lambda state: jax.lax.fori_loop(0, ITERATIONS, lambda _, s: algo.train_iteration(s), state))
    batch = ITERATIONS * WORK["num_envs"] * WORK["num_steps"]
    clock = Clock(warm_up_steps=batch)
    taken = 0
    while not clock.is_over(taken):
        state = jax.block_until_ready(iterations(state))
        taken += batch
    returns = algo.eval_callback(algo, state, state.rng)[1] if WORK["learn_steps"] else ()
    clock.tell(returns)


if __name__ == "__main__":
    main()
