"""Distributions against torch.distributions, numerical integration and the meaning of masks and bounds."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal, kl_divergence

from rollcall.learners.maths.categorical import Categorical, MultiCategorical
from rollcall.learners.maths.distributions import DiagonalGaussian, distribution_for


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _gaussian(dim: int = 2, squash: str = "clip") -> DiagonalGaussian:
    return DiagonalGaussian(dim, np.full(dim, -1.0), np.full(dim, 1.0), squash=squash)  # type: ignore[arg-type]


def test_a_categorical_has_torchs_log_prob_and_entropy() -> None:
    logits, actions = _randn(7, 3, 5), torch.arange(21).view(7, 3) % 5
    reference = TorchCategorical(logits=logits)
    distribution = Categorical(5)
    torch.testing.assert_close(distribution.log_prob(logits, actions), reference.log_prob(actions))
    torch.testing.assert_close(distribution.entropy(logits), reference.entropy())
    assert torch.equal(distribution.mode(logits), logits.argmax(-1))


def test_a_masked_category_has_probability_exactly_zero_and_the_rest_is_renormalised() -> None:
    logits = torch.tensor([[1.0, 50.0, -2.0, 0.5]])  # the masked category is by far the likeliest
    mask = torch.tensor([[True, False, True, True]])
    distribution = Categorical(4)
    probabilities = torch.stack([distribution.log_prob(logits, torch.tensor([k]), mask) for k in range(4)]).exp()
    allowed = TorchCategorical(logits=logits[:, [0, 2, 3]])
    assert probabilities[1, 0] == 0.0
    torch.testing.assert_close(probabilities[[0, 2, 3], 0], allowed.probs[0])
    torch.testing.assert_close(distribution.entropy(logits, mask), allowed.entropy())
    assert distribution.mode(logits, mask).item() == 0


def test_a_masked_category_is_never_sampled_however_likely_it_was() -> None:
    distribution = Categorical(3)
    logits = torch.tensor([0.0, 1000.0, 0.0]).expand(20_000, 3)
    mask = torch.tensor([True, False, True]).expand(20_000, 3)
    noise = distribution.noise((20_000,), torch.Generator().manual_seed(3))
    actions = distribution.sample(logits, noise, mask)
    assert not bool((actions == 1).any())
    assert 0.4 < float((actions == 0).float().mean()) < 0.6


def test_masked_log_probs_and_entropies_have_finite_gradients_that_vanish_at_masked_logits() -> None:
    logits = _randn(6, 4).requires_grad_()
    mask = torch.tensor([True, True, False, True]).expand(6, 4)
    distribution = Categorical(4)
    (
        distribution.log_prob(logits, torch.zeros(6, dtype=torch.int64), mask) + distribution.entropy(logits, mask)
    ).sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert bool((logits.grad[:, 2] == 0.0).all())
    assert bool((logits.grad[:, 0] != 0.0).all())


@pytest.mark.parametrize("distribution", [Categorical(3), MultiCategorical((3, 2))])
def test_a_row_that_allows_nothing_is_refused_at_the_actor_and_finite_at_the_learner(
    distribution: Categorical | MultiCategorical,
) -> None:
    mask = torch.zeros(4, distribution.mask_size, dtype=torch.bool)  # what padding looks like
    params = _randn(4, distribution.num_params).requires_grad_()
    actions = torch.zeros((4, *distribution.action_shape), dtype=torch.int64)
    loss = (distribution.log_prob(params, actions, mask) + distribution.entropy(params, mask)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert bool(loss.isfinite())
    assert params.grad is not None
    assert bool(params.grad.isfinite().all())
    distribution.check_mask(np.ones((4, distribution.mask_size), np.bool_))
    with pytest.raises(ValueError, match="action_mask allows no"):
        distribution.check_mask(mask.numpy())


def test_check_mask_looks_at_every_choice_of_a_multi_categorical() -> None:
    with pytest.raises(ValueError, match="one of the choices"):
        MultiCategorical((3, 2)).check_mask(np.array([[True, True, True, False, False]]))


def test_gumbel_argmax_samples_the_softmax() -> None:
    """100,000 draws, seed 0: each frequency within 4 standard errors of its probability."""
    logits = torch.tensor([2.0, 0.0, -1.0, -6.0])
    distribution = Categorical(4)
    noise = distribution.noise((100_000,), torch.Generator().manual_seed(0))
    frequencies = torch.bincount(distribution.sample(logits.expand(100_000, 4), noise), minlength=4) / 100_000
    probabilities = logits.softmax(-1)
    errors = (probabilities * (1 - probabilities) / 100_000).sqrt()
    assert bool(((frequencies - probabilities).abs() < 4 * errors).all())


def test_a_multi_categorical_is_independent_categoricals_side_by_side() -> None:
    distribution = MultiCategorical((3, 2, 4))
    params, mask = _randn(8, 9), torch.rand(8, 9, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[:, [0, 3, 5]] = True
    actions = torch.stack([torch.zeros(8), torch.zeros(8), torch.zeros(8)], -1).long()
    parts = [(Categorical(3), slice(0, 3)), (Categorical(2), slice(3, 5)), (Categorical(4), slice(5, 9))]
    for action_mask in (None, mask):
        masks = [None if action_mask is None else action_mask[:, part] for _, part in parts]
        expected_log_prob = sum(
            (one.log_prob(params[:, part], actions[:, k], masks[k]) for k, (one, part) in enumerate(parts)),
            torch.zeros(8),
        )
        expected_entropy = sum(
            (one.entropy(params[:, part], masks[k]) for k, (one, part) in enumerate(parts)), torch.zeros(8)
        )
        expected_mode = torch.stack([one.mode(params[:, part], masks[k]) for k, (one, part) in enumerate(parts)], -1)
        torch.testing.assert_close(distribution.log_prob(params, actions, action_mask), expected_log_prob)
        torch.testing.assert_close(distribution.entropy(params, action_mask), expected_entropy)
        assert torch.equal(distribution.mode(params, action_mask), expected_mode)
    noise = distribution.noise((8,), torch.Generator().manual_seed(2))
    samples = distribution.sample(params, noise, mask)
    for k, (one, part) in enumerate(parts):
        assert torch.equal(samples[:, k], one.sample(params[:, part], noise[:, part], mask[:, part]))


def test_a_clipped_gaussian_has_the_density_of_the_unclipped_action() -> None:
    distribution = _gaussian(3)
    mean, log_std, actions = _randn(5, 3), 0.3 * _randn(5, 3, seed=1), 2.0 * _randn(5, 3, seed=2)
    params = torch.cat((mean, log_std), -1)
    reference = Normal(mean, log_std.exp())
    torch.testing.assert_close(distribution.log_prob(params, actions), reference.log_prob(actions).sum(-1))
    torch.testing.assert_close(distribution.entropy(params), reference.entropy().sum(-1))


def test_a_gaussian_samples_mean_plus_std_times_noise() -> None:
    distribution = _gaussian(2)
    params = torch.tensor([1.0, -2.0, 0.5, -1.0])
    noise = distribution.noise((50_000,), torch.Generator().manual_seed(0))
    samples = distribution.sample(params.expand(50_000, 4), noise)
    torch.testing.assert_close(samples, params[:2] + params[2:].exp() * noise)
    # 50,000 draws, seed 0: 4 standard errors of a mean and of a standard deviation.
    bound = 4 * params[2:].exp() / 50_000**0.5
    assert bool(((samples.mean(0) - params[:2]).abs() < bound).all())
    assert bool(((samples.std(0) - params[2:].exp()).abs() < bound).all())


@pytest.mark.parametrize("mean", [-1.5, 0.0, 0.8])
@pytest.mark.parametrize("log_std", [-1.5, 0.0, 1.0])
def test_a_tanh_log_prob_is_the_density_of_the_squashed_action(mean: float, log_std: float) -> None:
    """P(a - h < tanh(U) < a + h) / 2h, with U's own distribution function, in float64."""
    distribution = _gaussian(1, squash="tanh")
    squashed = torch.linspace(-0.95, 0.95, 39, dtype=torch.float64)
    normal, h = Normal(torch.tensor(mean).double(), torch.tensor(log_std).double().exp()), 1e-5
    density = (normal.cdf(torch.atanh(squashed + h)) - normal.cdf(torch.atanh(squashed - h))) / (2 * h)
    params = torch.tensor([mean, log_std]).expand(39, 2)
    log_prob = distribution.log_prob(params, torch.atanh(squashed).float().unsqueeze(-1))
    assert log_prob.dtype == torch.float32
    likely = density > 1e-4
    torch.testing.assert_close(log_prob[likely], density[likely].log().float(), atol=1e-3, rtol=1e-3)


def test_a_tanh_log_prob_stays_finite_and_differentiable_far_out() -> None:
    distribution = _gaussian(1, squash="tanh")
    params = torch.tensor([[0.0, 0.0], [30.0, 1.0]], requires_grad=True)
    log_prob = distribution.log_prob(params, torch.tensor([[20.0], [-40.0]]))
    log_prob.sum().backward()  # type: ignore[no-untyped-call]
    assert bool(log_prob.isfinite().all())
    assert params.grad is not None
    assert bool(params.grad.isfinite().all())


@pytest.mark.parametrize("log_std", [-2.0, -0.5, 0.0, 1.0])
def test_a_tanh_entropy_is_the_integral_of_minus_p_log_p(log_std: float) -> None:
    distribution = _gaussian(2, squash="tanh")
    means = torch.tensor([0.4, -1.0])
    params = torch.cat((means, torch.full((2,), log_std)))
    std = float(np.exp(log_std))
    one = _gaussian(1, squash="tanh")
    expected = 0.0
    for mean in means.tolist():
        unsquashed = torch.linspace(mean - 9 * std, mean + 9 * std, 200_001, dtype=torch.float64).unsqueeze(-1)
        weights = Normal(torch.tensor(mean).double(), torch.tensor(std).double()).log_prob(unsquashed).exp().squeeze(-1)
        log_prob = one.log_prob(torch.tensor([mean, log_std]).expand(200_001, 2), unsquashed.float())
        expected -= float((weights * log_prob).sum() * (18 * std / 200_000))
    assert float(distribution.entropy(params)) == pytest.approx(expected, abs=1e-2)


def test_the_env_gets_clipped_actions_within_its_bounds_in_its_dtype() -> None:
    space = spaces.Box(np.array([-0.1, 0.0], np.float32), np.array([0.3, 1.7], np.float32))
    actions = np.array([[-5.0, 0.5], [0.2, 9.0]], np.float32)
    env_actions = distribution_for(space).to_env(actions)
    assert env_actions.dtype == np.float32
    np.testing.assert_array_equal(env_actions, np.clip(actions, space.low, space.high))
    assert all(space.contains(row) for row in env_actions)


def test_the_env_gets_tanh_actions_rescaled_to_its_bounds() -> None:
    space = spaces.Box(np.array([-0.1, 2.0], np.float32), np.array([0.3, 5.0], np.float32))
    distribution = distribution_for(space, "tanh")
    actions = np.array([[0.0, 0.0], [50.0, -50.0], [0.5, -0.5]], np.float32)
    env_actions = distribution.to_env(actions)
    np.testing.assert_allclose(env_actions[0], [0.1, 3.5], rtol=1e-6)
    np.testing.assert_array_equal(env_actions[1], [space.high[0], space.low[1]])
    np.testing.assert_allclose(
        env_actions[2], [-0.1 + 0.2 * (1 + np.tanh(0.5)), 2.0 + 1.5 * (1 - np.tanh(0.5))], rtol=1e-6
    )
    assert all(space.contains(row) for row in env_actions)


def test_discrete_actions_start_where_the_space_does() -> None:
    env_actions = distribution_for(spaces.Discrete(3, start=-1)).to_env(np.array([0, 1, 2]))
    np.testing.assert_array_equal(env_actions, [-1, 0, 1])
    shaped = spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 1], [0, -1]]))
    distribution = distribution_for(shaped)
    assert distribution.action_shape == (4,)
    env_actions = distribution.to_env(np.array([[1, 2, 3, 0]]))
    np.testing.assert_array_equal(env_actions, [[[1, 3], [3, -1]]])
    assert shaped.contains(env_actions[0])


def test_a_box_of_several_axes_is_flattened_and_given_back_in_its_shape() -> None:
    space = spaces.Box(-1.0, 1.0, (2, 3), np.float64)
    distribution = distribution_for(space)
    assert (distribution.num_params, distribution.action_shape) == (12, (6,))
    env_actions = distribution.to_env(np.linspace(-2, 2, 12, dtype=np.float32).reshape(2, 6))
    assert all(space.contains(row) for row in env_actions)


@pytest.mark.parametrize(
    "space", [spaces.MultiBinary(3), spaces.Box(0, 5, (2,), np.int64), spaces.Dict({"a": spaces.Discrete(2)})]
)
def test_an_action_space_that_is_not_supported_is_named(space: gym.Space) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=r"use Discrete, MultiDiscrete, or a Box of floats") as error:
        distribution_for(space)
    assert str(space) in str(error.value)


def test_tanh_needs_finite_bounds() -> None:
    with pytest.raises(ValueError, match="use squash=clip"):
        distribution_for(spaces.Box(-np.inf, np.inf, (2,), np.float32), "tanh")


def test_continuous_actions_cannot_be_masked() -> None:
    distribution = _gaussian(2)
    with pytest.raises(ValueError, match="cannot be masked"):
        distribution.log_prob(torch.zeros(1, 4), torch.zeros(1, 2), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="cannot be masked"):
        distribution.check_mask(np.ones((1, 4), np.bool_))


@pytest.mark.parametrize("distribution", [Categorical(3), MultiCategorical((2, 3)), _gaussian(2)])
def test_the_noise_of_a_unit_is_drawn_at_once_and_follows_the_seed(
    distribution: Categorical | MultiCategorical | DiagonalGaussian,
) -> None:
    first, again, other = (distribution.noise((4, 5), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape[:2] == (4, 5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_kl_is_torchs_and_counts_what_is_allowed_alone() -> None:
    logits, others = _randn(6, 5), _randn(6, 5, seed=1)
    mask = torch.tensor([True, False, True, True, False]).expand(6, 5)
    allowed = kl_divergence(
        TorchCategorical(logits=logits[:, [0, 2, 3]]), TorchCategorical(logits=others[:, [0, 2, 3]])
    )
    whole = kl_divergence(TorchCategorical(logits=logits), TorchCategorical(logits=others))
    torch.testing.assert_close(Categorical(5).kl(logits, others), whole)
    torch.testing.assert_close(Categorical(5).kl(logits, others, mask), allowed)
    first, second = slice(0, 3), slice(3, 5)
    parts = [Categorical(len(logits[0, part])).kl(logits[:, part], others[:, part]) for part in (first, second)]
    torch.testing.assert_close(MultiCategorical((3, 2)).kl(logits, others), parts[0] + parts[1])


@pytest.mark.parametrize("squash", ["clip", "tanh"])
def test_the_kl_of_gaussians_is_torchs_squashed_or_not(squash: str) -> None:
    params, others = _randn(6, 4), _randn(6, 4, seed=1)
    normals = [Normal(p[:, :2], p[:, 2:].exp()) for p in (params, others)]
    expected = kl_divergence(*normals).sum(-1)
    torch.testing.assert_close(_gaussian(squash=squash).kl(params, others), expected)
    torch.testing.assert_close(_gaussian(squash=squash).kl(params, params), torch.zeros(6))


def test_the_kl_of_squashed_gaussians_is_the_mean_log_ratio_of_their_draws() -> None:
    """200,000 draws, seed 0: within 4 standard errors."""
    distribution = _gaussian(dim=1, squash="tanh")
    params, others = torch.tensor([0.3, -0.5]), torch.tensor([-0.1, 0.2])
    draws = distribution.sample(params, distribution.noise((200_000,), torch.Generator().manual_seed(0)))
    ratios = distribution.log_prob(params, draws) - distribution.log_prob(others, draws)
    error = float(ratios.std()) / len(ratios) ** 0.5
    assert float(ratios.mean()) == pytest.approx(float(distribution.kl(params, others)), abs=4 * error)


def test_the_kl_of_masked_categories_has_finite_gradients_of_both_orders() -> None:
    others = _randn(3, 4, seed=1).requires_grad_()
    mask = torch.tensor([True, True, False, True]).expand(3, 4)
    kl = Categorical(4).kl(_randn(3, 4), others, mask).sum()
    (first,) = torch.autograd.grad(kl, others, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), others)
    assert bool(first.isfinite().all()) and bool(second.isfinite().all())
    assert bool((first[:, 2] == 0).all()) and bool((first[:, 0] != 0).all())
