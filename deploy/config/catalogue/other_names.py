"""What settings are called elsewhere: in Stable-Baselines3, CleanRL, RLlib, TRL, verl and OpenRLHF. Whoever types such
a name is told this project's. A name leads to the first of its settings that the recipe at hand has."""

from __future__ import annotations

from collections.abc import Collection, Mapping

# Setting, or settings in the order of preference -> the names that it has elsewhere.
_CALLED: Mapping[str, str] = {
    "learner.learning_rate": "lr learning_rate alpha policy_lr actor_lr pi_lr actor_learning_rate",
    "algorithm.critic_learning_rate": "q_lr critic_lr qf_learning_rate critic_learning_rate",
    "learner.schedule.kind": "anneal_lr lr_scheduler_type lr_schedule lr_decay linear_decay",
    "learner.schedule.warmup_steps": "warmup_steps warmup_ratio lr_warmup_steps num_warmup_steps",
    "learner.optimizer.kind": "optim optimizer optimizer_class",
    "learner.optimizer.weight_decay": "weight_decay",
    "learner.optimizer.eps": "adam_eps adam_epsilon",
    "learner.max_grad_norm": "max_grad_norm clip_grad grad_clip gradient_clip gradient_clipping",
    "learner.num_processes": "num_learners num_processes nproc_per_node",
    "learner.device": "device cuda use_cuda",
    "learner.compile": "torch_compile compile",
    "actors.num_envs": "n_envs num_envs num_envs_per_worker num_envs_per_env_runner",
    "actors.num": "num_workers n_workers num_env_runners num_rollout_workers num_actors num_samplers",
    "actors.unroll_length": "n_steps num_steps rollout_length rollout_fragment_length horizon nsteps steps_per_env",
    "total_env_steps total_learner_steps": "total_timesteps timesteps num_timesteps max_timesteps total_steps",
    "total_learner_steps": "max_steps num_train_steps max_iterations num_iterations total_training_steps train_steps",
    "actors.prompts_per_batch algorithm.num_minibatches replay.batch_size policy.warm_start.batch_size": "batch_size "
    "train_batch_size minibatch_size mini_batch_size sgd_minibatch_size per_device_train_batch_size rollout_batch_size "
    "ppo_mini_batch_size",
    "algorithm.num_minibatches": "n_minibatches num_mini_batches nminibatches",
    "algorithm.token_budget": "gradient_accumulation_steps micro_batch_size ppo_micro_batch_size",
    "algorithm.epochs": "n_epochs update_epochs num_epochs num_sgd_iter num_ppo_epochs ppo_epochs noptepochs k_epochs",
    "algorithm.discount": "gamma discount discount_factor",
    "algorithm.gae_lambda": "gae_lambda gae lam lambda lambda_ lmbda",
    "algorithm.clip_range algorithm.clip_low": "clip_range clip_coef clip_param clip_ratio cliprange clip clip_epsilon "
    "eps_clip epsilon_clip",
    "algorithm.clip_high algorithm.clip_range_high": "epsilon_high clip_ratio_high cliprange_high",
    "algorithm.value_clip_range": "clip_range_vf clip_vloss vf_clip_param cliprange_value value_clip",
    "algorithm.entropy_coef algorithm.temperature": "ent_coef entropy_coef entropy_coeff ent_coeff entropy_beta "
    "entropy_regularization",
    "algorithm.value_coef": "vf_coef value_coef vf_loss_coeff value_loss_coef vf_coeff",
    "algorithm.target_kl": "target_kl max_kl",
    "algorithm.normalise_advantages algorithm.normalise_std": "norm_adv normalize_advantage normalize_advantages "
    "scale_rewards whiten_advantages",
    "algorithm.kl_coef algorithm.beta": "beta kl_coef init_kl_coef kl_beta kl_coeff init_kl_coeff kl_loss_coef kl_ctl",
    "algorithm.aggregation": "loss_type loss_agg_mode",
    "algorithm.target_rate": "tau polyak soft_tau",
    "algorithm.target_every": "target_update_interval target_network_frequency target_update_freq target_update",
    "algorithm.epsilon": "exploration_final_eps end_e epsilon_end eps_end",
    "algorithm.epsilon_steps": "exploration_fraction epsilon_decay eps_decay epsilon_timesteps",
    "algorithm.policy_delay": "policy_delay policy_frequency",
    "algorithm.target_noise": "target_policy_noise policy_noise",
    "replay.capacity": "buffer_size replay_size capacity memory_size replay_buffer_size",
    "replay.learning_starts": "learning_starts start_steps num_steps_sampled_before_learning_starts",
    "replay.updates_per_env_step": "train_freq gradient_steps train_frequency utd utd_ratio updates_per_step",
    "policy.hidden_sizes": "net_arch hidden_size hidden_dim hidden_sizes fcnet_hiddens hidden_layers",
    "policy.activation": "activation_fn activation fcnet_activation",
    "policy.normalise_observations": "normalize normalize_obs norm_obs normalize_observations observation_filter",
    "policy.normalise_rewards": "norm_reward normalize_reward normalize_rewards",
    "policy.recurrent": "use_lstm lstm recurrent use_rnn",
    "policy.recurrent_size": "lstm_hidden_size lstm_cell_size rnn_size",
    "policy.squash": "squash_output tanh_squash",
    "policy.model": "model model_name model_name_or_path model_path pretrain base_model model_id",
    "policy.dtype": "bf16 fp16 dtype torch_dtype precision",
    "policy.lora.rank policy.lora": "lora_r lora_rank use_peft peft_config lora",
    "policy.lora.alpha policy.lora": "lora_alpha",
    "policy.lora.targets policy.lora": "lora_target_modules target_modules",
    "policy.gradient_checkpointing": "gradient_checkpointing activation_checkpointing",
    "policy.attention": "attn_implementation flash_attn use_flash_attention",
    "env.id": "env_id env_name environment gym_id",
    "env.max_episode_steps": "max_episode_steps max_episode_length time_limit",
    "env.frame_stack": "frame_stack n_stack",
    "actors.samples_per_prompt": "num_generations group_size n_samples_per_prompt n_samples num_samples",
    "actors.sampling.max_tokens": "max_completion_length max_new_tokens response_length max_tokens max_response_length "
    "generate_max_len",
    "actors.engine.max_model_len": "max_prompt_length max_length max_seq_length max_seq_len prompt_max_len",
    "actors.sampling.temperature algorithm.temperature": "temperature",
    "actors.sampling.top_p": "top_p",
    "actors.sampling.top_k": "top_k",
    "actors.engine.gpu_memory_utilization": "vllm_gpu_memory_utilization gpu_memory_utilization",
    "actors.engine.tensor_parallel_size": "vllm_tensor_parallel_size tensor_model_parallel_size tp tp_size",
    "reward": "reward_funcs reward_func reward_fn reward_function reward_model remote_rm_url",
    "task data.train": "dataset dataset_name train_dataset train_files prompt_data",
    "max_policy_lag": "staleness max_staleness max_off_policy_steps max_head_offpolicyness",
    "eval.every_steps": "eval_freq eval_steps evaluation_interval test_freq eval_interval",
    "eval.episodes eval.num_rows": "n_eval_episodes eval_episodes evaluation_duration num_eval_episodes",
    "checkpoint.every_steps": "save_freq save_steps checkpoint_freq save_interval save_every",
    "checkpoint.keep": "save_total_limit keep_checkpoints_num",
    "policy.init_from": "resume_from_checkpoint load_path pretrained init_from checkpoint_path",
    "name": "run_name exp_name experiment_name experiment",
    "seed": "random_seed rng_seed",
    "recorders": "report_to track wandb use_wandb wandb_project logger loggers tracker",
    "cluster.learner.num_gpus": "num_gpus n_gpus num_gpus_per_learner",
}
_OTHER_NAMES = {name: tuple(settings.split()) for settings, names in _CALLED.items() for name in names.split()}

# What a setting of ours means that is not the same as theirs.
_NOTES: Mapping[tuple[str, str], str] = {
    (
        "batch_size",
        "algorithm.num_minibatches",
    ): "a batch of actors.num_envs * actors.unroll_length steps is cut into so many",
    ("batch_size", "actors.prompts_per_batch"): "prompts, each with actors.samples_per_prompt samples",
    ("anneal_lr", "learner.schedule.kind"): "linear, cosine or constant",
    ("lr_schedule", "learner.schedule.kind"): "linear, cosine or constant",
    ("exploration_fraction", "algorithm.epsilon_steps"): "env steps, not a fraction",
    ("warmup_ratio", "learner.schedule.warmup_steps"): "learner steps, not a ratio",
    ("train_freq", "replay.updates_per_env_step"): "gradient steps for each env step",
    ("bf16", "policy.dtype"): "policy.dtype=bfloat16",
    ("fp16", "policy.dtype"): "policy.dtype=bfloat16, where float16 is meant",
    ("use_peft", "policy.lora.rank"): "policy.lora.rank=16",
    ("use_lstm", "policy.recurrent"): "policy.recurrent=gru or lstm",
    ("max_prompt_length", "actors.engine.max_model_len"): "prompt and completion together",
    ("gradient_accumulation_steps", "algorithm.token_budget"): "tokens of one pass; the rest of a batch is accumulated",
    ("total_timesteps", "total_learner_steps"): "batches, not env steps",
    (
        "resume_from_checkpoint",
        "policy.init_from",
    ): "a new run begins with its weights; rollcall resume RUN goes on with a run",
}
# What is no setting here, and what there is instead.
_INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(
        ("output_dir", "logdir", "log_dir", "save_dir", "save_path", "local_dir"),
        "runs are made in runs/, or in $ROLLCALL_RUNS; name=... is the directory there",
    ),
    **dict.fromkeys(("tensorboard_log", "tensorboard"), "every run writes RUN/tensorboard"),
    **dict.fromkeys(("capture_video", "record_video"), "rollcall eval RUN --video FILE.gif films an episode"),
    **dict.fromkeys(("verbose", "progress_bar"), "rollcall train -q prints less"),
    **dict.fromkeys(("torch_deterministic", "deterministic"), "the same seed gives the same run"),
    **dict.fromkeys(
        ("policy_class", "policy_type"), "the network follows from the env: policy.torso, policy.hidden_sizes"
    ),
    **dict.fromkeys(
        ("num_train_epochs", "num_episodes"), "a run ends after total_learner_steps, or total_env_steps in an env"
    ),
    **dict.fromkeys(("render_mode", "render"), "rollcall eval RUN --video FILE.gif films an episode"),
}


def called_here(name: str, known: Collection[str], *, typed: str = "") -> str:
    """`; Rollcall calls it learner.learning_rate` for another framework's name of a setting, nothing for other names.
    `known`: the dotted settings that there are; `typed`: the whole key, which is never the answer."""
    word = name.lower().lstrip("-").replace("-", "_")
    for setting in _OTHER_NAMES.get(word, ()):
        if setting.rpartition(".")[2] == word:
            return ""  # the same word: who looks for it finds it
        if setting in known and setting != typed:
            note = _NOTES.get((word, setting))
            return f"; Rollcall calls it {setting}{f' ({note})' if note else ''}"
    return f"; {_INSTEAD[word]}" if word in _INSTEAD else ""


def other_names(setting: str) -> tuple[str, ...]:
    """What a setting is called elsewhere, as far as we know."""
    own = setting.rpartition(".")[2]
    return tuple(name for name, settings in _OTHER_NAMES.items() if setting in settings and name != own)


def settings_called(name: str) -> tuple[str, ...]:
    """Settings that are called so elsewhere, best first."""
    return _OTHER_NAMES.get(name.lower().replace("-", "_"), ())
