# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""The process against enumeration of all coalitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monai_segshap.shapley import all_coalitions, exact_shapley, plan_coalitions
from monai_segshap.shapley.process import Hyperparameters, distance_prior, fit_surrogate, predict_walks

SETTINGS = {
    "plain": Hyperparameters(12.0, 1.0, 0.0, 0.0, 0.01),
    "linear": Hyperparameters(12.0, 2.0, 4.0, 0.0, 0.3),
    "size": Hyperparameters(5.0, 0.5, 0.0, 3.0, 0.003),
    "both": Hyperparameters(30.0, 4.0, 1.0, 0.3, 0.1),
    "flat": Hyperparameters(np.inf, 2.0, 1.0, 0.3, 0.03),
}


@pytest.fixture(params=SETTINGS)
def chosen(request) -> Hyperparameters:
    return SETTINGS[request.param]


def masks_of(n_units: int, n_pairs: int = 9) -> np.ndarray:
    return plan_coalitions(n_units, 30, "kernelshap", seed=1).rows[: 2 + 2 * n_pairs]


def fitted(n_units: int, chosen: Hyperparameters, masks: np.ndarray | None = None, keep_factor: bool = True):
    masks = masks_of(n_units) if masks is None else masks
    distances = 10.0 * np.random.default_rng(n_units).random(n_units)
    prior = distance_prior(distances, n_units, chosen.length_mm)
    table = np.random.default_rng(7).normal(size=(2**n_units, 2))
    return fit_surrogate(masks, table[masks @ (1 << np.arange(n_units))], prior, chosen, keep_factor)


def kernel_by_definition(left: np.ndarray, right: np.ndarray, prior: np.ndarray, chosen: Hyperparameters) -> np.ndarray:
    found = np.empty((len(left), len(right)))
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            u = 4.0 * sum(p * (a - 0.5) * (b - 0.5) for p, a, b in zip(prior, one, other, strict=True))
            step = one.mean() - other.mean()
            size = chosen.size * np.exp(-(step**2) / (2 * 0.15**2))
            found[i, j] = 1.0 + np.exp(chosen.interaction * u) + chosen.linear * u + size
    return found


def posterior(surrogate, chosen: Hyperparameters) -> tuple[np.ndarray, np.ndarray]:
    """Gain (2**M, n) and covariance (2**M, 2**M) of all coalitions for unit variance, by definition."""
    masks, prior = surrogate.masks, surrogate.prior
    every = all_coalitions(masks.shape[1])
    among = kernel_by_definition(masks, masks, prior, chosen)
    pinned = masks.all(axis=1) | ~masks.any(axis=1)
    noise = chosen.noise * np.diag(among).mean() * np.where(pinned, 1e-4, 1.0)
    across = kernel_by_definition(every, masks, prior, chosen)
    gain = np.linalg.solve(among + np.diag(noise), across.T).T
    return gain, kernel_by_definition(every, every, prior, chosen) - gain @ across.T


@pytest.mark.parametrize("n_units", [5, 6])
def test_values_are_the_shapley_values_of_the_prediction_for_all_coalitions(n_units, chosen):
    surrogate = fitted(n_units, chosen)
    expected = exact_shapley(surrogate.predict(all_coalitions(n_units)))
    np.testing.assert_allclose(surrogate.values(), expected, rtol=0, atol=1e-10)


def test_prediction_is_the_posterior_mean(chosen):
    surrogate = fitted(5, chosen)
    table = np.random.default_rng(7).normal(size=(32, 2))
    outputs = table[surrogate.masks @ (1 << np.arange(5))]
    gain, _ = posterior(surrogate, chosen)
    expected = outputs[1] + gain @ (outputs - outputs[1])
    np.testing.assert_allclose(surrogate.predict(all_coalitions(5)), expected, atol=1e-8)


@pytest.mark.parametrize("n_units", [5, 6])
def test_covariances_are_those_of_the_posterior(n_units, chosen):
    surrogate = fitted(n_units, chosen)
    functional = exact_shapley(np.eye(2**n_units))
    _, covariance = posterior(surrogate, chosen)
    expected = functional @ covariance @ functional.T
    found = surrogate.covariance()
    assert found.shape == (2, n_units, n_units)
    for output in range(2):
        np.testing.assert_allclose(found[output] / surrogate.variance[output], expected, rtol=0, atol=1e-10)
        assert np.linalg.eigvalsh(found[output]).min() > -1e-10


def test_the_variance_is_that_of_the_largest_likelihood(chosen):
    surrogate = fitted(5, chosen)
    masks = surrogate.masks
    target = np.random.default_rng(7).normal(size=(32, 2))[masks @ (1 << np.arange(5))]
    target = target - target[1]
    among = kernel_by_definition(masks, masks, surrogate.prior, chosen)
    pinned = masks.all(axis=1) | ~masks.any(axis=1)
    noisy = among + np.diag(chosen.noise * np.diag(among).mean() * np.where(pinned, 1e-4, 1.0))
    expected = np.diag(target.T @ np.linalg.solve(noisy, target)) / len(masks)
    np.testing.assert_allclose(surrogate.variance, expected, rtol=1e-8)


def test_full_and_empty_are_pinned(chosen):
    surrogate = fitted(6, chosen)
    outputs = np.random.default_rng(7).normal(size=(64, 2))
    ends = surrogate.predict(np.array([[True] * 6, [False] * 6]))
    np.testing.assert_allclose(ends, outputs[[63, 0]], atol=2e-3)
    inner = surrogate.predict(surrogate.masks[2:]) - outputs[surrogate.masks[2:] @ (1 << np.arange(6))]
    assert np.abs(ends - outputs[[63, 0]]).max() < 0.05 * np.abs(inner).max()
    np.testing.assert_allclose(surrogate.values().sum(axis=0), outputs[63] - outputs[0], atol=4e-3)


def test_renumbering_the_units_renumbers_the_values(chosen):
    order = np.array([3, 0, 5, 1, 4, 2])
    surrogate = fitted(6, chosen)
    outputs = np.random.default_rng(7).normal(size=(64, 2))[surrogate.masks @ (1 << np.arange(6))]
    moved = fit_surrogate(surrogate.masks[:, order], outputs, surrogate.prior[order], chosen, True)
    np.testing.assert_allclose(moved.values(), surrogate.values()[order], atol=1e-9)
    np.testing.assert_allclose(moved.covariance(), surrogate.covariance()[:, order][:, :, order], atol=1e-9)


def test_the_order_of_the_rows_does_not_matter(chosen):
    masks = masks_of(6)
    shuffled = np.random.default_rng(0).permutation(len(masks))
    one, other = fitted(6, chosen, masks), fitted(6, chosen, masks[shuffled])
    np.testing.assert_allclose(other.values(), one.values(), atol=1e-9)
    np.testing.assert_allclose(other.covariance(), one.covariance(), atol=1e-9)


def test_many_units_keep_the_quadrature_exact():
    # an additive game: the linear part alone carries it, and the sum of the values is the total
    n_units = 120
    masks = plan_coalitions(n_units, 400, "gaussian_process").rows
    prior = distance_prior(None, n_units, np.inf)
    surrogate = fit_surrogate(masks, masks @ np.linspace(-1, 2, n_units)[:, None], prior, SETTINGS["both"])
    ends = surrogate.predict(np.array([[True] * n_units, [False] * n_units]))
    np.testing.assert_allclose(surrogate.values().sum(axis=0), ends[0] - ends[1], atol=1e-9)


@pytest.mark.parametrize("length", [0.5, 10.0, 1e4])
def test_prior_weights_fall_with_the_distance_and_sum_to_one(length):
    distances = np.array([0.0, 5.0, 10.0, 80.0, 300.0])
    prior = distance_prior(distances, 5, length)
    assert prior.sum() == pytest.approx(1.0)
    assert (np.diff(prior) <= 0).all()
    strength = np.exp(-distances / length) + 0.02
    np.testing.assert_allclose(prior, strength**2 / (strength**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(distance_prior(distances + 40.0, 5, length), prior, rtol=1e-12)


def test_prior_is_flat_without_distances_or_for_an_infinite_length():
    for prior in (distance_prior(None, 4, 10.0), distance_prior(np.arange(4.0), 4, np.inf)):
        assert prior.tolist() == [0.25] * 4


def test_covariances_need_the_factor(chosen):
    with pytest.raises(ValueError, match="keep_factor=True"):
        fitted(5, chosen, keep_factor=False).covariance()


def test_the_empty_coalition_is_needed(chosen):
    masks = masks_of(5)
    with pytest.raises(ValueError, match="the empty coalition is not among the rows"):
        fitted(5, chosen, np.delete(masks, 1, axis=0))


def test_repeated_rows_and_next_to_no_noise_are_survived():
    masks = np.concatenate([masks_of(5), masks_of(5)])
    surrogate = fitted(5, replace(SETTINGS["flat"], noise=1e-14), masks)
    assert np.isfinite(surrogate.values()).all()
    assert np.isfinite(surrogate.covariance()).all()


def test_prediction_along_walks_is_that_of_its_states():
    rng, plan = np.random.default_rng(0), plan_coalitions(12, 100, "gaussian_process")
    chosen = [Hyperparameters(20.0, 4.0, 0.0, 0.3, 0.01), Hyperparameters(np.inf, 0.5, 4.0, 0.0, 0.1)]
    outputs = rng.normal(size=(plan.n_evaluations, 2))
    fits = [
        fit_surrogate(plan.rows, outputs[:, [i]], distance_prior(rng.random(12) * 60, 12, c.length_mm), c)
        for i, c in enumerate(chosen)
    ]
    order = np.stack([rng.permutation(12) for _ in range(5)])
    found = predict_walks(fits, order)
    for walk, along in zip(order, found, strict=True):
        states = np.stack([np.isin(np.arange(12), walk[:k]) for k in range(13)])
        expected = sum(fit.predict(states)[:, 0] for fit in fits)
        np.testing.assert_allclose(along, expected, rtol=0, atol=1e-10)
