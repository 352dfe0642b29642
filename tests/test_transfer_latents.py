"""The latents of the hierarchical model in O(K), against the whole covariance."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from matrices import from_effects, matrix
from omni_thinker.runs.schema.transfer import Column, TransferMatrix
from omni_thinker.transfer.latents import Measured
from omni_thinker.transfer.plan import make_plan

HYPER = np.array([0.1, -0.9, 0.7, -0.6, -1.2])
MATRIX = matrix([0.2, 0.4, 0.5], [[0.6, 0.5, 0.4], [0.1, 0.8, 0.6], [0.05, 0.2, 0.9]], stderr=0.04)
ELSEWHERE = Column("z", "z", MATRIX.start["a"], {"a": MATRIX.after["a"]["b"]})
"""An evaluation of a task that nothing was trained on; two of the runs weren't measured on it."""
OBSERVED = Measured.of([*MATRIX.columns(), ELSEWHERE], MATRIX.tasks)


def _whole(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Design, prior mean and variance of the latents, and noise, of one evaluation, written out."""
    runs = np.flatnonzero(np.isfinite(OBSERVED.noise_C_K[n]))
    own = OBSERVED.own_C[n]
    design = np.zeros((1 + len(runs), 6))
    design[:, 0] = 1
    for row, k in enumerate(runs, 1):
        design[row, 1] = design[row, 2 if k == own else 3 + int(k)] = 1
    mean = np.array([0.0, HYPER[0], HYPER[2], 0.0, 0.0, 0.0])
    spread = np.array([3.0, np.exp(HYPER[1]), np.exp(HYPER[3]), *[np.exp(HYPER[4])] * 3])
    noise = np.array([OBSERVED.start_noise_C[n], *OBSERVED.noise_C_K[n, runs]])
    return design, mean, spread**2, noise


def test_likelihood_is_that_of_the_whole_covariance() -> None:
    expected = 0.0
    for n in range(4):
        design, mean, variance, noise = _whole(n)
        values = [OBSERVED.start_C[n], *OBSERVED.after_C_K[n, np.isfinite(OBSERVED.noise_C_K[n])]]
        cov = (design * variance) @ design.T + np.diag(noise**2)
        expected += multivariate_normal(design @ mean, cov).logpdf(values) + len(values) / 2 * np.log(2 * np.pi)
    assert OBSERVED.loglik(HYPER) == pytest.approx(expected, abs=1e-10)


def test_own_gain_counts_as_far_as_other_runs_measure_the_shared_part() -> None:
    expected = []
    for n in range(4):
        design, _, variance, noise = _whole(n)
        others = [0, *(row for row in range(1, len(design)) if design[row, 3:].any())]
        variance[1] = 30.0**2
        cov = (design[others] * variance) @ design[others].T + np.diag(noise[others] ** 2)
        told = design[others, 1] * variance[1]
        doubt = variance[1] - told @ np.linalg.solve(cov, told)
        gain = OBSERVED.posterior(HYPER, n)[0][2] if OBSERVED.own_C[n] >= 0 else 0.0
        expected.append(gain**2 / (gain**2 + doubt))
    assert OBSERVED.known(HYPER) == pytest.approx(expected, abs=1e-9)


def test_draws_for_many_tasks_have_the_mean_and_the_covariance_of_those_for_few() -> None:
    draws = OBSERVED._draw_many(HYPER, np.random.default_rng(0), 100_000)
    for n in range(4):
        latents = np.stack(
            [draws.start_C_N[n], draws.shared_C_N[n], draws.own_C_N[n], *(own[n] for own in draws.specific_K_C_N)]
        )
        mean, cov = OBSERVED.posterior(HYPER, n)
        assert latents[:, 0] == pytest.approx(mean, abs=1e-9), "the first draw is the mean"
        assert latents[:, 1:].mean(axis=1) == pytest.approx(mean, abs=0.02)
        assert np.cov(latents[:, 1:]) == pytest.approx(cov, abs=0.02)


@pytest.mark.slow
def test_plan_of_200_tasks_by_the_default_forecaster_takes_seconds_and_has_a_bound() -> None:
    effects = np.random.default_rng(0).normal(-0.01 / 50, 0.03 / 50, (200, 200))
    table: TransferMatrix = from_effects(effects)
    began = time.process_time()
    plan = make_plan(table)
    assert time.process_time() - began < 20
    assert not plan.exact
    assert plan.sequence.score <= plan.upper_bound < 1
