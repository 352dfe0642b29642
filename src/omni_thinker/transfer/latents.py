"""What was measured of every evaluation, in log-odds, and what it says of the latents of the hierarchical model.

The latents of an evaluation: its start, the shared part, its own gain, and a specific effect of every other run. A run
shows start + shared + one of the rest. So given the first two the rest are independent, and likelihoods and means cost
O(K) an evaluation. Draws come from the whole covariance while there are few tasks, else from that independence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.transfer import Column
from omni_thinker.transfer.forecast import Array, owners
from omni_thinker.transfer.matrix import smoothed
from omni_thinker.types import TaskName

_START_SPREAD = 3.0
_FLAT_SPREAD = 30.0
_LEAST_NOISE = 0.05
"""Least standard error of an evaluation, in log-odds."""
_WHOLE = 32
"""Up to so many tasks the draws come from a covariance's eigenvectors, whose cost is K^4 in all."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Draws of the latents, the first their mean; C evaluations, K tasks, N draws."""

    start_C_N: Array
    shared_C_N: Array
    own_C_N: Array
    specific_K_C_N: Array


@dataclass(frozen=True, slots=True)
class Measured:
    """Log-odds at the start and after every run, with their noise: infinite where nothing was measured.

    `own_C`: place of an evaluation's task among the tasks, -1 where nothing was trained on it. Methods take `hyper`:
    mean of the shared part and log of its spread, the same of the own gain, log of the spread of specific effects."""

    own_C: NDArray[np.int64]
    start_C: Array
    start_noise_C: Array
    after_C_K: Array
    noise_C_K: Array

    @classmethod
    def of(cls, columns: Sequence[Column], tasks: Sequence[TaskName]) -> "Measured":
        cells = [[observe(c.after[i]) if i in c.after else (0.0, math.inf) for i in tasks] for c in columns]
        after, noise = np.array(cells).transpose(2, 0, 1)
        start, start_noise = np.array([observe(c.start) for c in columns]).T
        return cls(owners(columns, tasks), start, start_noise, after, noise)

    def loglik(self, hyper: Array) -> float:
        """Log-likelihood of all that was measured, up to a constant."""
        residual_C_K, precision_C_K = self._of_runs(hyper)
        spread = np.exp(hyper[1])
        a, b, c = self._information(precision_C_K, spread)
        both_C = (precision_C_K * residual_C_K).sum(axis=1)
        first_C = self.start_C / self.start_noise_C**2 + both_C
        determinant_C = a * c - b**2
        explained = (c * first_C**2 - 2 * b * first_C * both_C + a * both_C**2) / determinant_C
        squares = (self.start_C / self.start_noise_C) ** 2 + (precision_C_K * residual_C_K**2).sum(axis=1)
        seen = precision_C_K > 0
        logdet = 2 * np.log(self.start_noise_C).sum() - np.log(precision_C_K[seen]).sum()
        logdet += (np.log(determinant_C) + 2 * np.log(_START_SPREAD) + 2 * hyper[1]).sum()
        return float(-0.5 * (squares - explained).sum() - 0.5 * logdet)

    def known(self, hyper: Array) -> Array:
        """How surely the own gain is more than the shared part, [C]: 0 where other runs say nothing."""
        _, precision_C_K = self._of_runs(hyper)
        others_C_K = np.where(self._is_own(), 0.0, precision_C_K)
        # The shared part's variance by what the other runs say alone, without its prior.
        a, b, c = self._information(others_C_K, _FLAT_SPREAD)
        doubt_C = a / (a * c - b**2)
        gain_C = np.where(self.own_C >= 0, self._own_mean(hyper), 0.0)
        return np.where(others_C_K.any(axis=1), gain_C**2 / (gain_C**2 + doubt_C), 0.0)

    def draw(self, hyper: Array, rng: np.random.Generator, draws: int) -> Parts:
        """Exact draws of the posterior."""
        if self.after_C_K.shape[1] > _WHOLE:
            return self._draw_many(hyper, rng, draws)
        latents = []
        for n in range(len(self.own_C)):
            mean_L, left = self.posterior(hyper, n)
            eigenvalues, vectors = np.linalg.eigh((left + left.T) / 2)
            root = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
            latent = mean_L[:, None] + root @ rng.normal(size=(len(mean_L), draws))
            latent[:, 0] = mean_L
            latents.append(latent)
        start, shared, own, *specific = np.stack(latents, axis=1)
        return Parts(start, shared, own, np.stack(specific))

    def posterior(self, hyper: Array, n: int) -> tuple[Array, Array]:
        """Mean and covariance of the latents of evaluation `n`: start, shared, own and one for each task."""
        count, own = self.after_C_K.shape[1], self.own_C[n]
        runs = np.flatnonzero(np.isfinite(self.noise_C_K[n]))
        design = np.zeros((1 + len(runs), 3 + count))
        design[:, 0] = 1.0
        design[1:, 1] = 1.0
        design[np.arange(1, 1 + len(runs)), np.where(runs == own, 2, 3 + runs)] = 1.0
        prior_L, variance = self._prior(hyper, int(own))
        noise = np.append(self.start_noise_C[n], self.noise_C_K[n, runs])
        values = np.append(self.start_C[n], self.after_C_K[n, runs])
        cov = (design * variance) @ design.T + np.diag(noise**2)
        gain = np.linalg.solve(cov, design * variance).T
        return prior_L + gain @ (values - design @ prior_L), np.diag(variance) - gain @ (design * variance)

    def _prior(self, hyper: Array, own: int) -> tuple[Array, Array]:
        """Means and variances of the latents."""
        count = self.after_C_K.shape[1]
        mean, spread = np.zeros(3 + count), np.full(3 + count, np.exp(hyper[4]))
        mean[1:3] = hyper[0], hyper[2]
        spread[:3] = _START_SPREAD, np.exp(hyper[1]), np.exp(hyper[3])
        if own < 0:
            mean[2], spread[2] = 0.0, 1e-6
        else:
            spread[3 + own] = 1e-6  # a task's effect on itself is its own gain
        return mean, spread**2

    def _is_own(self) -> NDArray[np.bool_]:
        return np.asarray(self.own_C[:, None] == np.arange(self.after_C_K.shape[1]))

    def _of_runs(self, hyper: Array) -> tuple[Array, Array]:
        """What a run shows beyond the prior means, and its precision given start and shared part, [C, K] each."""
        variance = np.exp(2 * np.where(self._is_own(), hyper[3], hyper[4]))
        mean = hyper[0] + np.where(self._is_own(), hyper[2], 0.0)
        return self.after_C_K - mean, 1 / (variance + self.noise_C_K**2)

    def _information(self, precision_C_K: Array, spread: float) -> tuple[Array, Array, Array]:
        """The precision matrix [[a, b], [b, c]] of start and shared part, whose prior spread is `spread`."""
        both_C = precision_C_K.sum(axis=1)
        return _START_SPREAD**-2 + self.start_noise_C**-2 + both_C, both_C, spread**-2 + both_C

    def _common(self, hyper: Array) -> tuple[Array, Array]:
        """Means [C, 2] and covariances [C, 2, 2] of start and shared part."""
        residual_C_K, precision_C_K = self._of_runs(hyper)
        a, b, c = self._information(precision_C_K, np.exp(hyper[1]))
        cov = np.stack([c, -b, -b, a], axis=1).reshape(-1, 2, 2) / (a * c - b**2)[:, None, None]
        both_C = (precision_C_K * residual_C_K).sum(axis=1)
        told = np.stack([self.start_C / self.start_noise_C**2 + both_C, both_C], axis=1)
        return np.einsum("cij,cj->ci", cov, told) + np.array([0.0, hyper[0]]), cov

    def _own_mean(self, hyper: Array) -> Array:
        """Posterior means of the own gains, [C]; of no meaning where nothing was trained on the task."""
        mean, _ = self._common(hyper)
        places = np.arange(len(self.own_C))
        weight = np.exp(2 * hyper[3]) / (np.exp(2 * hyper[3]) + self.noise_C_K[places, self.own_C] ** 2)
        return np.asarray(hyper[2] + weight * (self.after_C_K[places, self.own_C] - mean.sum(axis=1) - hyper[2]))

    def _draw_many(self, hyper: Array, rng: np.random.Generator, draws: int) -> Parts:
        count, places = self.after_C_K.shape[1], np.arange(len(self.own_C))
        mean, cov = self._common(hyper)
        noise = rng.normal(size=(2, len(places), draws))
        noise[..., 0] = 0.0
        root = np.linalg.cholesky(cov)
        start, shared = mean.T[:, :, None] + np.einsum("cij,jcn->icn", root, noise)

        def rest(value: Array, spread: Array, prior: float, variance: float) -> Array:
            """[..., C, N]: what a run shows beyond start and shared part. Little memory: this is K x C x N."""
            weight = variance / (variance + spread**2)
            drawn = rng.standard_normal((*value.shape, draws))
            drawn *= np.sqrt(variance * (1 - weight))[..., None]
            drawn[..., 0] = 0.0
            drawn += ((1 - weight) * prior + weight * value)[..., None]
            drawn -= weight[..., None] * (start + shared)
            return drawn

        trained = self.own_C >= 0
        own = rest(
            self.after_C_K[places, self.own_C], self.noise_C_K[places, self.own_C], hyper[2], np.exp(2 * hyper[3])
        )
        own[~trained] = 0.0
        variance = np.exp(2 * hyper[4])
        specific = np.empty((count, len(places), draws))
        for k in range(count):
            specific[k] = rest(self.after_C_K[:, k], self.noise_C_K[:, k], 0.0, variance)
        specific[self.own_C[trained], places[trained]] = 0.0
        return Parts(start, shared, own, specific)


def observe(estimate: Estimate) -> tuple[float, float]:
    """Log-odds of an accuracy, and their standard error (delta method, away from the edges)."""
    p = smoothed(estimate)
    stderr = estimate.stderr
    if stderr == 0 and estimate.n:
        stderr = math.sqrt(p * (1 - p) / estimate.n)
    if not math.isfinite(stderr):
        stderr = 0.5
    return math.log(p / (1 - p)), max(_LEAST_NOISE, min(3.0, stderr / (p * (1 - p))))
