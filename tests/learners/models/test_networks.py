"""The actor-critic against literal evaluation: step by step, episode by episode, and space by space."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import Space, spaces
from pydantic import ValidationError
from torch import Tensor

from rollcall.cluster.messages.steps import EnvSteps
from rollcall.cluster.messages.weights import pack_weights
from rollcall.learners.batches.gym_batch import GymBatch
from rollcall.learners.models.flat import load_module_weights, module_weights
from rollcall.learners.models.images import image_shape, to_channels_first
from rollcall.learners.models.networks import ActorCritic, build_actor_critic
from rollcall.learners.models.policy_config import PolicyConfig
from rollcall.learners.models.torsos import RecurrentCore, flatten_space, vector_features

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)


def _network(
    config: PolicyConfig, *, observation_space: Space[Any] = VECTOR, seed: int = 0, with_critic: bool = True
) -> ActorCritic:
    return build_actor_critic(observation_space, spaces.Discrete(3), config, with_critic=with_critic, seed=seed)


def _observations(*lead: int, seed: int = 0) -> dict[str, Tensor]:
    return {"observation": torch.randn(*lead, 3, generator=torch.Generator().manual_seed(seed))}


# Spaces.


def test_choices_become_one_hots_from_where_their_space_starts() -> None:
    features = vector_features(torch.tensor([[5, 7], [6, 5]]), spaces.Discrete(3, start=5))
    assert features.tolist() == [[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [1, 0, 0]]]
    space = spaces.MultiDiscrete(np.array([2, 3]), start=np.array([0, 1]))
    assert vector_features(torch.tensor([[1, 1], [0, 3]]), space).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    assert vector_features(torch.tensor([[1, 0, 1]]), spaces.MultiBinary(3)).tolist() == [[1, 0, 1]]


def test_bytes_are_scaled_to_one_and_floats_are_left_as_they_are() -> None:
    torch.testing.assert_close(
        vector_features(torch.tensor([[0, 255]], dtype=torch.uint8), spaces.Box(0, 255, (2,), np.uint8)),
        torch.tensor([[0.0, 1.0]]),
    )
    matrix = torch.randn(4, 2, 3, dtype=torch.float64)
    features = vector_features(matrix, spaces.Box(-9, 9, (2, 3), np.float64))
    assert torch.equal(features, matrix.float().reshape(4, 6))


@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_bytes_are_scaled_by_the_bounds_of_their_own_space(recurrent: str) -> None:
    """A state of zeros and ones is seen alike, declared in bytes or in floats; so is one whose elements differ."""
    config = PolicyConfig(recurrent=recurrent)  # type: ignore[arg-type]
    low, high = np.array([0, 10, 7]), np.array([1, 30, 7])
    in_bytes = _network(
        config, observation_space=spaces.Box(low.astype(np.uint8), high.astype(np.uint8), dtype=np.uint8)
    )
    in_floats = _network(config, observation_space=spaces.Box(0, 1, (3,), np.float32))
    given = torch.tensor([[[0, 10, 7], [1, 30, 7], [1, 15, 7]]], dtype=torch.uint8)
    same = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.25, 0.0]]])
    torch.testing.assert_close(in_bytes({"observation": given}).params, in_floats({"observation": same}).params)


def test_images_of_zeros_and_ones_are_scaled_by_their_bounds_and_those_of_255_have_nothing_new_in_their_weights() -> (
    None
):
    binary = _network(PolicyConfig(), observation_space=spaces.Box(0, 1, (36, 36, 1), np.uint8))
    usual = _network(PolicyConfig(), observation_space=spaces.Box(0, 255, (36, 36, 1), np.uint8))
    frames = torch.randint(0, 2, (2, 36, 36, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.testing.assert_close(
        binary({"observation": frames}).params, usual({"observation": frames * 255}).params, atol=1e-6, rtol=0
    )
    assert usual.byte_ranges is None
    assert [name for name, _ in usual.named_buffers()] == []


def test_weights_from_before_the_scaling_act_as_they_did_and_are_published_so() -> None:
    """A release that knew no bounds divided all bytes by 255, and its policies learnt with that."""
    space = spaces.Box(0, 1, (3,), np.uint8)
    network = _network(PolicyConfig(), observation_space=space, seed=3)
    whole = module_weights({"actor_critic": network}, "policy", epoch=1, version=1)
    old = pack_weights("policy", 1, 1, {k: v for k, v in whole.tensors() if ".byte_ranges." not in k})
    observed = torch.tensor([[0, 1, 1]], dtype=torch.uint8)
    with torch.no_grad():
        then = network.policy_head(network.torso({"observation": observed}))  # as the torso scales bytes: by 255
        again = _network(PolicyConfig(), observation_space=space)
        load_module_weights(again, old)
        torch.testing.assert_close(again({"observation": observed}).params, then)
        load_module_weights(again, module_weights({"actor_critic": again}, "policy", epoch=1, version=2))
        torch.testing.assert_close(again({"observation": observed}).params, then)
        load_module_weights(again, whole)
        torch.testing.assert_close(again({"observation": observed}).params, network({"observation": observed}).params)
        assert not torch.allclose(again({"observation": observed}).params, then)


def test_nested_dicts_are_flattened_to_names_joined_with_dots() -> None:
    space = spaces.Dict({"arm": spaces.Dict({"joint": VECTOR, "grip": spaces.Discrete(2)}), "goal": VECTOR})
    assert sorted(flatten_space(space)) == ["arm.grip", "arm.joint", "goal"]
    assert list(flatten_space(VECTOR)) == ["observation"]


def test_a_dict_feeds_every_part_to_the_network() -> None:
    space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (40, 48, 3), np.uint8),
            "arm": spaces.Dict({"joint": VECTOR, "grip": spaces.Discrete(2)}),
        }
    )
    network = _network(PolicyConfig(orthogonal_init=False, normalise_observations=True), observation_space=space)
    generator = torch.Generator().manual_seed(0)
    observations = {
        "camera": torch.randint(0, 256, (5, 2, 40, 48, 3), generator=generator, dtype=torch.uint8),
        "arm.joint": torch.randn(5, 2, 3, generator=generator),
        "arm.grip": torch.randint(0, 2, (5, 2), generator=generator),
    }
    params = network(observations).params
    assert params.shape == (5, 2, 3)
    for name, values in observations.items():
        changed = network({**observations, name: values.flip(0)}).params
        assert bool(((changed - params).abs() > 1e-6).any()), name


@pytest.mark.parametrize("space", [spaces.Text(4), spaces.Dict({"a": spaces.Tuple((VECTOR,))})])
def test_an_observation_space_that_is_not_supported_is_named(space: Space[Any]) -> None:
    with pytest.raises(ValueError, match=r"observation space (Text|Tuple).* is not supported"):
        _network(PolicyConfig(), observation_space=space)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((84, 84, 3), (3, 84, 84)),
        ((4, 84, 84), (4, 84, 84)),
        ((96, 40, 1), (1, 96, 40)),
        ((4, 84, 80, 3), (12, 84, 80)),
        ((2, 3, 84, 80), (6, 84, 80)),
        ((84, 80), (1, 84, 80)),
        ((10, 10, 4), None),
        ((128,), None),
    ],
)
def test_an_images_layout_is_read_off_its_shape(shape: tuple[int, ...], expected: tuple[int, int, int] | None) -> None:
    space = spaces.Box(0, 255, shape, np.uint8)
    assert image_shape(space) == expected
    if expected is not None:
        assert to_channels_first(torch.zeros(2, *shape, dtype=torch.uint8), space).shape == (2, *expected)


def test_channels_stay_with_their_pixels() -> None:
    stack = torch.arange(2 * 4 * 40 * 44 * 3).view(2, 4, 40, 44, 3)
    channels_first = to_channels_first(stack, spaces.Box(0, 1, (4, 40, 44, 3), np.float32))
    assert channels_first[1, 2 * 3 + 1, 7, 9] == stack[1, 2, 7, 9, 1]  # frame 2, colour 1
    picture = stack[:, 0]
    assert to_channels_first(picture, spaces.Box(0, 1, (40, 44, 3), np.float32))[1, 2, 7, 9] == picture[1, 7, 9, 2]


def test_a_small_image_is_a_vector_unless_a_cnn_is_asked_for() -> None:
    space = spaces.Box(0, 255, (10, 10, 4), np.uint8)
    assert not _network(PolicyConfig(), observation_space=space).torso.images
    (cnn,) = _network(PolicyConfig(torso="cnn"), observation_space=space).torso.cnns
    assert [tuple(weights.shape) for weights in cnn.state_dict().values()] == [
        *((16, 4, 3, 3), (16,)),
        *((128, 16 * 8 * 8), (128,)),
    ]
    with pytest.raises(ValueError, match="torso=cnn, but no observation is an image of at least 3 x 3"):
        _network(PolicyConfig(torso="cnn"), observation_space=spaces.Box(0, 255, (2, 2, 3), np.uint8))


BITS: Space[Any] = spaces.Box(0, 1, (10, 10, 4), np.bool_)  # type: ignore[arg-type]  # stubs know no bool


def test_a_small_cnn_reads_channels_of_truth_values_as_an_image_of_each_step() -> None:
    """MinAtar's observations: where each thing of the game is."""
    network = _network(PolicyConfig(torso="cnn", orthogonal_init=False), observation_space=BITS)
    (cnn,) = network.torso.cnns
    kernel, kernel_bias, matrix, bias = cnn.state_dict().values()
    seen = torch.rand(3, 2, 10, 10, 4, generator=torch.Generator().manual_seed(0)) < 0.3
    convolved = F.relu(F.conv2d(seen[1, 0].float().permute(2, 0, 1), kernel, kernel_bias))
    expected = F.relu(F.linear(convolved.flatten(), matrix, bias))
    torch.testing.assert_close(network.torso({"observation": seen})[1, 0], expected)


# Construction.


def test_construction_follows_the_seed_and_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (_network(PolicyConfig(recurrent="gru"), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.policy_head.weight, other.policy_head.weight)


def test_orthogonal_layers_have_the_known_gains() -> None:
    network = _network(PolicyConfig(hidden_sizes=(16, 16)))
    assert network.value_torso is not None
    assert network.value_head is not None
    for torso in (network.torso, network.value_torso):
        assert torso.mlp is not None
        hidden: Tensor = torso.mlp.layers[2].get_parameter("weight")  # square: W W^T = gain^2 I
        torch.testing.assert_close(hidden @ hidden.T, 2.0 * torch.eye(16), atol=1e-5, rtol=0)
    weight = network.policy_head.weight
    torch.testing.assert_close(weight @ weight.T, 1e-4 * torch.eye(3), atol=1e-8, rtol=0)
    torch.testing.assert_close(network.value_head.weight.norm(), torch.tensor(1.0))
    assert all(bool((p == 0).all()) for name, p in network.named_parameters() if name.endswith("bias"))


def test_an_mlps_policy_and_value_are_separate_by_default_and_share_a_torso_if_asked() -> None:
    separate, shared = _network(PolicyConfig()), _network(PolicyConfig(shared_torso=True))
    for network, touched in ((separate, False), (shared, True)):
        values = network(_observations(4)).values
        values.sum().backward()
        assert (next(network.torso.parameters()).grad is not None) == touched


def test_the_acting_path_gives_the_same_parameters_and_never_runs_the_values_torso() -> None:
    network = _network(PolicyConfig())
    assert network.value_torso is not None
    observations = _observations(6)
    expected = network(observations).params
    runs: list[object] = []
    network.value_torso.register_forward_hook(lambda *call: runs.append(call))
    assert torch.equal(network.policy_params(observations), expected)
    assert runs == []


def test_a_network_without_critic_has_no_values_and_cannot_bootstrap() -> None:
    network = _network(PolicyConfig(), with_critic=False)
    assert network(_observations(2)).values is None
    with pytest.raises(ValueError, match="with_critic=True"):
        network.bootstrap(_batch(network))


def test_any_leading_axes_give_the_same_numbers() -> None:
    network = _network(PolicyConfig(normalise_observations=True))
    observations = _observations(5, 4)
    network.update_normaliser(observations, torch.ones(5, 4, dtype=torch.bool))
    whole, flat = network(observations), network({"observation": observations["observation"].flatten(0, 1)})
    torch.testing.assert_close(whole.params.flatten(0, 1), flat.params)
    torch.testing.assert_close(whole.values.flatten(), flat.values)
    assert network({"observation": observations["observation"][0, 0]}).params.shape == (3,)


def test_the_log_std_of_a_continuous_policy_is_a_parameter_of_its_own() -> None:
    config = PolicyConfig(log_std_init=-0.7)
    network = build_actor_critic(VECTOR, spaces.Box(-1, 1, (2,)), config, with_critic=False, seed=0)
    params = network(_observations(4, 2)).params
    assert params.shape == (4, 2, 4)
    assert bool((params[..., 2:] == torch.tensor(-0.7)).all())
    params.sum().backward()
    assert network.log_std is not None
    assert network.log_std.grad is not None
    assert network.log_std.grad.tolist() == [8.0, 8.0]


@pytest.mark.parametrize(
    "settings", [{"recurrent": "lstm", "shared_torso": False}, {"hidden_sizes": (64, 0)}, {"torso": "resnet"}]
)
def test_a_config_that_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PolicyConfig(**settings)


# Recurrence.


def _literal_unroll(core: RecurrentCore, features: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    outputs = []
    for t in range(len(features)):
        output, state = core.step(features[t], state * ~starts[t].unsqueeze(-1))
        outputs.append(output)
    return torch.stack(outputs), state


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_an_unroll_with_restarts_is_the_cell_step_by_step_and_so_are_its_gradients(kind: Any) -> None:
    torch.manual_seed(0)
    core = RecurrentCore(kind, 4, 6, orthogonal=False)
    features, state = torch.randn(17, 3, 4, requires_grad=True), torch.randn(core.num_states, 3, 6, requires_grad=True)
    starts = torch.rand(17, 3) < 0.2
    inputs = (features, state, *core.parameters())
    outputs, final, states = core.unroll(features, state, starts, keep_after=[4, 9])
    expected, expected_final = _literal_unroll(core, features, state, starts)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(final, expected_final)
    for t in (4, 9):
        torch.testing.assert_close(states[t], _literal_unroll(core, features[: t + 1], state, starts[: t + 1])[1])
    weights = torch.randn(17, 3, 6)
    gradients = torch.autograd.grad((outputs * weights).sum() + final.sum(), inputs)
    expected_gradients = torch.autograd.grad((expected * weights).sum() + expected_final.sum(), inputs)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_episodes_in_one_unroll_are_each_episode_alone(kind: Any) -> None:
    network = _network(PolicyConfig(recurrent=kind, recurrent_size=7, orthogonal_init=False))
    observations = _observations(12, 2)["observation"]
    starts = torch.zeros(12, 2, dtype=torch.bool)
    starts[5, 0] = starts[8, 0] = starts[3, 1] = True
    initial = torch.randn(network.num_states, 2, 7, generator=torch.Generator().manual_seed(1))
    whole = network({"observation": observations}, initial_state=initial, episode_starts=starts)
    for b, cuts in ((0, (0, 5, 8, 12)), (1, (0, 3, 12))):
        for begin, end in pairwise(cuts):
            alone = network(
                {"observation": observations[begin:end, b : b + 1]},
                initial_state=initial[:, b : b + 1] if begin == 0 else None,
            )
            torch.testing.assert_close(whole.params[begin:end, b], alone.params[:, 0])
            torch.testing.assert_close(whole.values[begin:end, b], alone.values[:, 0])
        torch.testing.assert_close(whole.final_state[:, b], alone.final_state[:, 0])


def test_a_start_at_step_zero_forgets_the_initial_state() -> None:
    network = _network(PolicyConfig(recurrent="lstm", recurrent_size=4, orthogonal_init=False))
    starts = torch.zeros(3, 2, dtype=torch.bool)
    starts[0] = True
    state = torch.randn(2, 2, 4)
    forgotten = network(_observations(3, 2), initial_state=state, episode_starts=starts)
    torch.testing.assert_close(forgotten.params, network(_observations(3, 2)).params)


# Bootstrapping.


def _batch(network: ActorCritic, *, ends: bool = True) -> GymBatch:
    """Episodes that end inside, at the last step, and with a dead step after them (a NEXT_STEP env)."""
    num_steps, num_envs = shape = (9, 3)
    generator = torch.Generator().manual_seed(0)
    terminated, truncated = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    starts, mask = torch.zeros(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)
    if ends:
        truncated[2, 0] = terminated[5, 0] = truncated[num_steps - 1, 1] = terminated[3, 2] = True
        starts[3, 0] = starts[6, 0] = starts[5, 2] = True
        mask[4, 2] = False
    index = (terminated | truncated).nonzero()
    state = None
    if network.is_recurrent:
        state = torch.randn(network.num_states, num_envs, network.recurrent_size, generator=generator)
    return GymBatch(
        steps=EnvSteps(
            observations={"observation": torch.randn(*shape, 3, generator=generator)},
            actions=torch.zeros(shape, dtype=torch.int64),
            behaviour_logprobs=torch.zeros(shape),
            rewards=torch.zeros(shape),
            terminated=terminated,
            truncated=truncated,
            mask=mask,
            episode_starts=starts,
        ),
        last_observations={"observation": torch.randn(num_envs, 3, generator=generator)},
        final_index=index,
        final_observations={"observation": torch.randn(len(index), 3, generator=generator)},
        initial_recurrent_state=state,
    )


def _value(network: ActorCritic, observation: Tensor, state: Tensor | None) -> Tensor:
    """Of one observation [3], with the state [num_states, hidden] carried to it."""
    if state is None:
        return network({"observation": observation}).values
    values: Tensor = network({"observation": observation[None, None]}, initial_state=state[:, None]).values
    return values[0, 0]


def _literal_bootstrap(network: ActorCritic, batch: GymBatch) -> tuple[Tensor, Tensor]:
    num_steps, num_envs = batch.shape
    finals: Mapping[tuple[int, int], int] = {(t, b): n for n, (t, b) in enumerate(batch.final_index.tolist())}
    values, next_values = torch.zeros(num_steps, num_envs), torch.zeros(num_steps, num_envs)
    observations = batch.steps.observations["observation"]
    for b in range(num_envs):
        state = None if batch.initial_recurrent_state is None else batch.initial_recurrent_state[:, b]
        for t in range(num_steps):
            if state is not None and batch.steps.episode_starts[t, b]:
                state = torch.zeros_like(state)
            values[t, b] = _value(network, observations[t, b], state)
            if state is not None:
                after = network({"observation": observations[t, b][None, None]}, initial_state=state[:, None])
                state = after.final_state[:, 0]
            if (t, b) in finals:
                true_next = batch.final_observations["observation"][finals[t, b]]
            elif t + 1 < num_steps:
                true_next = observations[t + 1, b]
            else:
                true_next = batch.last_observations["observation"][b]
            next_values[t, b] = _value(network, true_next, state)
    return values, next_values


@pytest.mark.parametrize("recurrent", ["none", "lstm", "gru"])
@pytest.mark.parametrize("ends", [True, False])
def test_next_values_are_those_of_the_true_next_observations(recurrent: Any, ends: bool) -> None:
    config = PolicyConfig(recurrent=recurrent, recurrent_size=5, orthogonal_init=False, normalise_observations=True)
    network = _network(config)
    batch = _batch(network, ends=ends)
    network.update_normaliser(batch.steps.observations, batch.steps.mask)
    values, next_values = network.bootstrap(batch)
    expected_values, expected_next = _literal_bootstrap(network, batch)
    assert not values.requires_grad
    assert not next_values.requires_grad
    torch.testing.assert_close(values, expected_values.detach(), atol=1e-5, rtol=1e-5)
    experience = batch.steps.mask  # a dead step is followed by another episode: nothing is asked of it but to be finite
    torch.testing.assert_close(next_values[experience], expected_next.detach()[experience], atol=1e-5, rtol=1e-5)
    assert bool(next_values.isfinite().all())


def test_a_cnn_learns_from_bytes_and_bootstraps() -> None:
    space = spaces.Box(0, 255, (2, 36, 40), np.uint8)
    network = _network(PolicyConfig(orthogonal_init=False), observation_space=space)
    assert network.value_torso is None
    frames = torch.randint(0, 256, (3, 2, 2, 36, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    output = network({"observation": frames})
    one_by_one = [network({"observation": frames[t, b]}).values for t in range(3) for b in range(2)]
    torch.testing.assert_close(output.values.flatten(), torch.stack(one_by_one))
    (output.values.sum() + output.params.square().sum()).backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters())


def test_a_cnn_in_bfloat16_is_the_same_within_its_precision_and_all_else_stays_float32() -> None:
    space = spaces.Box(0, 255, (2, 36, 40), np.uint8)
    networks = [
        _network(PolicyConfig(orthogonal_init=False, image_dtype=dtype), observation_space=space)
        for dtype in ("float32", "bfloat16")
    ]
    frames = torch.randint(0, 256, (64, 2, 36, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features = [network.torso({"observation": frames}).detach() for network in networks]
    assert [found.dtype for found in features] == [torch.float32] * 2
    assert not torch.equal(*features), "it is computed in another precision"
    torch.testing.assert_close(features[1], features[0], atol=0.02 * float(features[0].abs().max()), rtol=0.0)
    gradients = []
    for network in networks:
        output = network({"observation": frames})
        (output.values.sum() + output.params.square().sum()).backward()
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
        found = [parameter.grad for parameter in network.parameters()]
        gradients.append(torch.cat([gradient.flatten() for gradient in found if gradient is not None]))
    assert gradients[1].dtype == torch.float32
    assert float(torch.cosine_similarity(gradients[0], gradients[1], dim=0)) > 0.99
