"""The default forecaster: a small hierarchical model in log-odds, drawn from what was measured.

Each run lifts an evaluation by a *shared* component (form, elicitation: any RL brings it, once) plus something
*specific*: the task's own gain, and what training on i does to j beyond the shared part. Mixing dilutes the own gain,
later stages wear it off; both by shares with priors, which evidence from a run sharpens. Where other runs say nothing
of the shared part, dilution and wear are not applied and the forecast is the naive one: each task at its own
single-task level.

    d[i, c] = shared[c] + specific[i, c]        shared ~ N(m, s), specific ~ N(0, t)      i not c's own task
    d[own, c] = shared[c] + own[c]              own ~ N(mo, so)

Where the matrix knows entropies, a stage's own gain may depend on what earlier stages did to the entropy of its answers
(arXiv 2507.14783 explains misses of its forecast by that): gain x (1 + response x change in nats), the response 0 but
for what evidence says.

Hyper-parameters by maximum a posteriori over all evaluations (SciPy's L-BFGS; five numbers, so no sampler is needed);
given them everything is Gaussian and drawn exactly."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.priors import Beta, Priors
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.forecast import DRAWS, Array, Forecaster, Joint, LogOdds, Merge, SetForm, Stage, gain_share
from omni_thinker.transfer.latents import Measured, observe
from omni_thinker.transfer.priors.named import HAND
from omni_thinker.types import TaskName

_KEPT = 64
"""Sequences whose forecast is kept."""
_MOST_SEEN = 64
"""Evaluations that are learnt from, the latest; an update takes the cube of their number."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """An evaluation of every task after some stages of a run."""

    stages: tuple[Stage, ...]
    accuracy: Mapping[TaskName, Estimate]


class _Mixed(NamedTuple):
    """What joint training comes to in log-odds, without luck, and what that is made of.

    total: its passes. weight_C, share_C: share of an evaluation's task in them, and of a pass's gain that it brings.
    others: how much of the shared part and, weighted, of specific effects comes. lost_C_N: share of an own gain that is
    lost among others. among_C: how much a task is among others. keep_C_N: share of its gain that is kept."""

    value_C_N: Array
    total: float
    weight_C: Array
    share_C: Array
    others: float
    lost_C_N: Array
    among_C: Array
    keep_C_N: Array


class Hierarchical(Forecaster):
    """Shared and specific effects in log-odds, with dilution, wear and saturation."""

    name = "hierarchical"
    scale = LogOdds()

    def __init__(
        self,
        matrix: TransferMatrix,
        draws: int = DRAWS,
        seed: int = 0,
        evidence: Sequence[Evidence] = (),
        priors: Priors = HAND,
    ) -> None:
        super().__init__(matrix)
        self.priors = priors
        self._seed, self._same_luck = seed, False
        observed = Measured.of(self.columns, self.tasks)
        hyper = fit_hyper([observed], priors)
        rng = np.random.default_rng([seed, 11])
        latents = observed.draw(hyper, rng, draws)
        self.start_C_N, self.shared_C_N, self.gain_C_N = latents.start_C_N, latents.shared_C_N, latents.own_C_N
        self.specific_K_C_N = latents.specific_K_C_N
        self.known_C = observed.known(hyper)[:, None]
        """How surely the own gain is more than the shared part: 0 where other runs say nothing, 1 where they tell the
        shared part exactly."""
        self.spread = float(np.exp(hyper[4]))
        self.diluted_N = _beta(rng, priors.dilution, draws)
        self.retained_N = _beta(rng, priors.retention, draws)
        self.merged_N = _beta(rng, priors.merged, draws)
        self.entropy_K_C = self._entropies()
        self.response_N = rng.normal(0.0, priors.response, draws)
        self.response_N[0] = 0.0
        self._ends = OrderedDict[tuple[Stage, ...], Array]()
        if evidence:
            self._learn(evidence, [observed.posterior(hyper, c)[1] for c in range(len(self.columns))])

    def under(self, priors: Priors) -> "Hierarchical":
        """The same latents with other priors of what single runs don't show: shares, response, luck, learning curve.

        Their quantiles are the same at every call, so that forecasts change smoothly with the priors. What was learnt
        from evidence of these is dropped."""
        other = copy(self)
        other.priors, other._ends = priors, OrderedDict()
        shares = _quantiles(priors, self._seed, len(self.retained_N))
        other.diluted_N, other.retained_N, other.merged_N, other.response_N = shares
        return other

    def fewer(self, draws: int) -> "Hierarchical":
        """The same forecaster with its first `draws` draws; with 1, the means of all."""
        other = copy(self)
        other._ends = OrderedDict()
        for name in ("start_C_N", "shared_C_N", "gain_C_N", "specific_K_C_N", "diluted_N", "retained_N", "merged_N"):
            drawn = getattr(self, name)
            setattr(other, name, drawn[..., :draws] if draws > 1 else drawn.mean(axis=-1, keepdims=True))
        other.response_N = self.response_N[:draws]  # the first one is its mean
        return other

    def sequence(self, stages: Sequence[Stage]) -> Array:
        return self.scale.back(
            self._sequence(stages) + self._process("sequence", *((s.task, s.passes) for s in stages))
        )

    def expected(self, plan: Sequence[Stage] | Joint | Merge) -> Array:
        self._same_luck = True
        try:
            return self.by_column(plan)
        finally:
            self._same_luck = False

    def _sequence(self, stages: Sequence[Stage]) -> Array:
        """Log-odds without luck. The latest are kept: a plan is asked for its mean, its draws and its intervals."""
        key = tuple(stages)
        if key not in self._ends:
            shared, gained_C_N, others_K_C = self._coefficients(stages)
            specific = np.einsum("kc,kcn->cn", others_K_C, self.specific_K_C_N)
            self._ends[key] = self.start_C_N + shared * self.shared_C_N + gained_C_N * self.gain_C_N + specific
            if len(self._ends) > _KEPT:
                self._ends.popitem(last=False)
        return self._ends[key]

    def _coefficients(self, stages: Sequence[Stage]) -> tuple[float, Array, Array]:
        """How much of the shared part, the own gain and each specific effect a sequence ends with."""
        keep = self._kept(self.retained_N)
        gained_C_N = np.zeros(self.start_C_N.shape)
        others_K_C, nats_C = np.zeros(self.entropy_K_C.shape), np.zeros(len(self.columns))
        worn_C_N = {progress: 1 - (1 - keep) * progress for progress in {self._progress(stage) for stage in stages}}
        for stage in stages:
            k, share = self.tasks.index(stage.task), self._gain(stage.passes)
            of_task_C, progress = self.own_C == k, self._progress(stage)
            had = gained_C_N[of_task_C]
            # A short later stage wears off less.
            gained_C_N *= worn_C_N[progress]
            others_K_C[:, of_task_C] *= 1 - self._brought_back(stage.passes)
            others_K_C[k, ~of_task_C] += share
            # A stage on a task that was trained before tops it up, and takes nothing away.
            target = (1 + self.response_N * nats_C[of_task_C, None]) * max(1.0, share)
            gained_C_N[of_task_C] = np.maximum(had, had + progress * (target - had))
            nats_C = nats_C + share * self.entropy_K_C[k]
        return min(1.0, self._gain(sum(stage.passes for stage in stages))), gained_C_N, others_K_C

    def joint(self, plan: Joint) -> Array:
        return self.scale.back(self._mixed(plan).value_C_N + self._process("joint", *sorted(plan.weights.items())))

    def joint_slopes(self, plan: Joint) -> tuple[Array, Array]:
        """What `expected` says of joint training, [C, N], and its slope in each task's share, [K, C, N]."""
        mixed, rate = self._mixed(plan), self.priors.curve
        self._same_luck = True
        accuracy = self.scale.back(mixed.value_C_N + self._process())
        self._same_luck = False
        steep_C = mixed.total * rate * np.exp(-rate * mixed.weight_C * mixed.total) / (1 - np.exp(-rate))
        less_lost = mixed.share_C * mixed.lost_C_N * 2 * (mixed.among_C < 1)
        slopes, trained = mixed.others * self.specific_K_C_N, np.flatnonzero(self.own_C >= 0)
        slopes[self.own_C[trained], trained] += (self.gain_C_N * (steep_C * mixed.keep_C_N + less_lost))[trained]
        return accuracy, slopes * (accuracy * (1 - accuracy))

    def _mixed(self, plan: Joint) -> "_Mixed":
        total = len(self.tasks) if plan.passes is None else plan.passes
        weights = np.array([plan.weights.get(task, 0.0) for task in self.tasks])
        shares = np.array([self._gain(weight * total) for weight in weights])
        share_C = np.where(self.own_C >= 0, shares[self.own_C], 0.0)[:, None]
        weight_C = np.where(self.own_C >= 0, weights[self.own_C], 0.0)[:, None]
        # Trained alone nothing is diluted; the prior is for a task among others.
        lost, among_C = 1 - self._kept(self.diluted_N), np.minimum(1.0, 2 * (1 - weight_C))
        keep, others = 1 - lost * among_C, min(1.0, self._gain(total))
        told = others * np.einsum("k,kcn->cn", weights, self.specific_K_C_N)
        value = self.start_C_N + self.shared_C_N * others + share_C * keep * self.gain_C_N + told
        return _Mixed(value, total, weight_C, share_C, others, lost, among_C, keep)

    def merge(self, plan: Merge) -> Array:
        shared = 1 - (1 - min(1.0, plan.scale)) ** len(self.tasks)
        value = self.start_C_N + shared * self.shared_C_N + plan.scale * self._kept(self.merged_N) * self.gain_C_N
        value = value + plan.scale * self.specific_K_C_N.sum(axis=0)
        return self.scale.back(value + self._process("merge", plan.scale))

    def set_form(self) -> SetForm:
        """The form at the means of the draws. What entropy adds to an own gain doesn't wear off here, which keeps the
        form."""
        return self._form(slice(None), np.zeros(len(self.columns)))

    def _form(self, draws: slice, luck_C: Array) -> SetForm:
        gain_C_N = self.gain_C_N[:, draws]
        told_K_C = self.entropy_K_C * (gain_C_N * self.response_N[draws]).mean(axis=1)
        return SetForm(
            self.tasks,
            self.own_C,
            (self.start_C_N + self.shared_C_N)[:, draws].mean(axis=1) + told_K_C.sum(axis=0) + luck_C,
            self.specific_K_C_N[:, :, draws].mean(axis=2) - told_K_C,  # a task that comes later has not come before
            gain_C_N.mean(axis=1),
            self._kept(self.retained_N[draws]).mean(axis=1),
            self.scale,
        )

    def form_of(self, draw: int) -> SetForm:
        """The form of one draw, with the luck that `expected` gives every plan."""
        self._same_luck = True
        luck_C = self._process()[:, draw]
        self._same_luck = False
        return self._form(slice(draw, draw + 1), luck_C)

    def _entropies(self) -> Array:
        """Nats that a run on one task adds to the entropy of answers to another; 0 where nothing is known, [K, C]."""
        entropy = self.matrix.entropy
        return np.array(
            [
                [0.0 if entropy is None or c.task == i else entropy.change(i, c.task) for c in self.columns]
                for i in self.tasks
            ]
        )

    def _gain(self, passes: float) -> float:
        return gain_share(passes, self.priors.curve)

    def _progress(self, stage: Stage) -> float:
        return min(1.0, self._gain(stage.passes))

    def _brought_back(self, passes: float) -> float:
        """Share of what others did to a task that a stage on it clears away; 0 at 0, 1 from one pass on."""
        rate = self.priors.recovery
        return float(min(1.0, -np.expm1(-rate * passes) / -np.expm1(-rate)))

    def _luck(self) -> float:
        """Spread, in log-odds, of what no measuring of the matrix tells."""
        least, per_spread = self.priors.luck
        return float(np.hypot(least, per_spread * self.spread))

    def _kept(self, share_N: Array) -> Array:
        return np.asarray(1 - (1 - share_N)[None] * self.known_C)

    def _process(self, *plan: object) -> Array:
        """What no measuring of the matrix tells: independent for each plan, shared by no two evaluations."""
        words = "" if self._same_luck else repr(plan)
        key = [self._seed, 17, *np.frombuffer(words.encode(), dtype=np.uint8).tolist()]
        return np.random.default_rng(key).normal(0.0, self._luck(), self.start_C_N.shape)

    def _learn(self, evidence: Sequence[Evidence], covariances: Sequence[Array]) -> None:
        """What runs ended at. Given how gains wear off and answer to entropy, everything else is Gaussian: these two
        are drawn again by how well they explain what was seen, and then the rest is moved by its exact update."""
        evidence = evidence[-_MOST_SEEN:]
        sigma = self._luck()
        coefficients = [self._coefficients(run.stages) for run in evidence]
        rng = np.random.default_rng([self._seed, 13])
        draws = len(self.retained_N)
        updates = []
        loglik_N = np.zeros(draws)
        for c, column in enumerate(self.columns):
            reported = [n for n, run in enumerate(evidence) if column.name in run.accuracy]
            if not reported:
                continue
            values, noise = np.array([observe(evidence[n].accuracy[column.name]) for n in reported]).T
            design_N_E_L = np.stack([_design(*coefficients[n], c) for n in reported], axis=1)
            noise_E = noise**2 + sigma**2
            cross_N_L_E = covariances[c] @ design_N_E_L.transpose(0, 2, 1)
            cov_N_E_E = design_N_E_L @ cross_N_L_E + np.diag(noise_E)
            residual_N_E = values - design_N_E_L @ self._latents(c)[:, 0]
            solved = np.linalg.solve(cov_N_E_E, residual_N_E[..., None])[..., 0]
            loglik_N += -0.5 * (residual_N_E * solved).sum(axis=1) - 0.5 * np.linalg.slogdet(cov_N_E_E)[1]
            updates.append((c, design_N_E_L, cross_N_L_E, cov_N_E_E, values, noise_E))
        weight_N = np.exp(loglik_N - loglik_N.max())
        picked = rng.choice(draws, draws, p=weight_N / weight_N.sum())
        self.retained_N, self.response_N = self.retained_N[picked], self.response_N[picked]
        for c, design, cross, cov, values, noise_E in updates:
            latents = self._latents(c)
            noisy_N_E = values + rng.normal(size=(draws, len(values))) * np.sqrt(noise_E)
            noisy_N_E[0] = values
            missed = noisy_N_E - np.einsum("nel,ln->ne", design[picked], latents)
            moved = cross[picked] @ np.linalg.solve(cov[picked], missed[..., None])
            latents = latents + moved[..., 0].T
            self.start_C_N[c], self.shared_C_N[c], self.gain_C_N[c] = latents[:3]
            self.specific_K_C_N[:, c] = latents[3:]

    def _latents(self, c: int) -> Array:
        """[3 + K, N]"""
        parts = (self.start_C_N[c], self.shared_C_N[c], self.gain_C_N[c])
        return np.concatenate([np.stack(parts), self.specific_K_C_N[:, c]])


def _design(shared: float, gained_C_N: Array, others_K_C: Array, c: int) -> Array:
    """What a sequence's end is of the latents of one evaluation, [N, 3 + K]."""
    draws = gained_C_N.shape[1]
    others_N_K = np.broadcast_to(others_K_C[:, c], (draws, len(others_K_C)))
    return np.concatenate(
        [np.ones((draws, 1)), np.full((draws, 1), shared), gained_C_N[c][:, None], others_N_K], axis=1
    )


def fit_hyper(observed: Sequence[Measured], priors: Priors) -> Array:
    """Mean of the shared part and log of its spread, the same of the own gain, log of the spread of specific effects:
    those of the highest posterior over all that was observed."""
    from scipy.optimize import minimize  # a third of a second that a study needs at its plan alone

    own = (priors.shared, priors.shared_spread, priors.own, priors.own_spread, priors.specific_spread)
    mean, spread = np.array(own).T

    def cost(hyper: Array) -> float:
        prior = 0.5 * (((hyper - mean) / spread) ** 2).sum()
        return float(prior - sum(each.loglik(hyper) for each in observed))

    bounds = [(-3, 3), (-4, 1.5), (-3, 4), (-4, 1.5), (-4, 1.5)]
    fit = minimize(cost, mean, method="L-BFGS-B", bounds=bounds)
    return np.asarray(fit.x)


@lru_cache(maxsize=4)
def _quantiles(priors: Priors, seed: int, draws: int) -> tuple[Array, ...]:
    """Draws of dilution, retention, what a merge keeps, and response, at the same quantiles whatever the priors are."""
    from scipy.special import betaincinv

    rng = np.random.default_rng([seed, 19])
    found = []
    for shape in (priors.dilution, priors.retention, priors.merged):
        share_N = betaincinv(*shape, rng.random(draws))
        share_N[0] = shape[0] / sum(shape)
        found.append(share_N)
    response_N = rng.normal(0.0, priors.response, draws)
    response_N[0] = 0.0
    return (*found, response_N)


def _beta(rng: np.random.Generator, shape: Beta, draws: int) -> Array:
    """Draws, the first the mean."""
    draws_N = rng.beta(*shape, draws)
    draws_N[0] = shape[0] / sum(shape)
    return np.asarray(draws_N)
