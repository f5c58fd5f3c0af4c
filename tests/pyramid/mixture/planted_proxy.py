"""A proxy whose best mixture is known: least squares on four sources, each of which alone shows a part of the problem.

Source k shows only the k-th block of inputs, with noise of its own; three blocks are asked for on held-out data, the
fourth is not. With n samples of d inputs the expected error of a block is ``d sigma^2 / (n - d - 1)``, so that the best
shares follow in closed form. Models are really trained: ridge regression, and SGD where weights change on the way.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge

from pyramid.mixture.spec import read_mixture
from pyramid.mixture.tune.proxy import ProxyRun, SourceSize
from pyramid.rng import rng

SOURCES = ("steady", "noisy", "middle", "junk")
SIGMA = np.array([0.5, 1.0, 0.8, 1.0])
D = 24
POOLS = {"": (4000, 3000, 2000, 30_000), "scarce": (4000, 120, 4000, 30_000), "diverges": (100, 100, 100, 100)}


def best_shares(budget: int) -> np.ndarray:
    """Shares that make the expected error smallest: Lagrange on sum_k d sigma_k^2 / (n w_k - d - 1)."""
    spare = D + 1
    shares = spare + (budget - 3 * spare) * SIGMA[:3] / SIGMA[:3].sum()
    return np.array([*(shares / budget), 0.0])


class Planted:
    name = "planted"

    def __init__(self, mixture: str, config: str) -> None:
        self.names = list(read_mixture(mixture).shares())
        self.config = config
        self.pools = POOLS.get(config, POOLS[""])
        draw = rng(0, "planted", "problem")
        self.beta = draw.normal(size=(4, D)) * 0.4
        self.data = []
        for k, n in enumerate(self.pools):
            x = rng(0, "planted", k).normal(size=(n, D))
            self.data.append((x, x @ self.beta[k] + SIGMA[k] * rng(1, "planted", k).normal(size=n)))
        self.held_out = rng(2, "planted").normal(size=(1000, D))

    def digest(self) -> str:
        return f"planted {self.config} 1"

    def sizes(self):
        found = dict(zip(SOURCES, self.pools, strict=True))
        return {name: SourceSize(items=found[name], hours=found[name] / 1000) for name in self.names}

    def targets(self):
        return ["steady", "noisy", "middle"]

    def run(self, run: ProxyRun):
        if self.config == "diverges" and run.weights["junk"] > 0.5:
            return {"steady": float("nan"), "noisy": 1.0, "middle": 1.0}
        draw = rng(run.seed, "planted run")
        xs, ys = [np.zeros((1, 4 * D))], [np.zeros(1)]
        for k, name in enumerate(SOURCES):
            x, y = self.data[k]
            part = max(int(len(x) * run.fractions.get(name, 1.0)), 1)
            rows = draw.integers(0, part, int(run.weights.get(name, 0.0) * run.budget))
            wide = np.zeros((len(rows), 4 * D))
            wide[:, k * D : (k + 1) * D] = x[rows]
            xs.append(wide)
            ys.append(y[rows])
        model = Ridge(alpha=0.3, fit_intercept=False).fit(np.concatenate(xs), np.concatenate(ys))
        blocks = model.coef_.reshape(4, D)
        return {t: float(np.mean((self.held_out @ (blocks[k] - self.beta[k])) ** 2)) for k, t in enumerate(SOURCES[:3])}


class Learnable(Planted):
    """Sources that differ in what there is to learn: ``steady`` fast, ``middle`` slow, ``junk`` nothing but noise."""

    name = "learnable"
    PACE = (1.0, 0.8, 0.5, 1.0)
    NOISE = (0.2, 0.2, 0.2, 1.5)
    BATCH = 64

    def samples(self, seed: int, step: int):
        import torch

        found = {}
        for k, name in enumerate(SOURCES):
            draw = rng(seed, "learnable", step, k)
            x = np.zeros((self.BATCH, 4 * D))
            x[:, k * D : (k + 1) * D] = draw.normal(size=(self.BATCH, D)) * self.PACE[k]
            signal = 0.0 if name == "junk" else x[:, k * D : (k + 1) * D] @ (self.beta[k] / self.PACE[k])
            y = signal + self.NOISE[k] * draw.normal(size=self.BATCH)
            found[name] = torch.tensor(x), torch.tensor(y)
        return found

    def losses(self, theta, samples):
        return {name: (x @ theta - y) ** 2 for name, (x, y) in samples.items()}

    def train(self, weigh, budget, seed):
        import torch

        theta = torch.zeros(4 * D, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.SGD([theta], lr=0.05)
        for step in range(budget):
            losses = self.losses(theta, self.samples(seed, step))
            weights = weigh(losses, self.samples(seed, step))
            optimiser.zero_grad()
            sum(weights[name] * loss.mean() for name, loss in losses.items()).backward()
            optimiser.step()
        return theta.detach()

    def reference(self, run: ProxyRun):
        return self.train(lambda losses, samples: run.weights, run.budget, run.seed)

    def train_reweighted(self, reference, rule, *, budget, seed):
        def weigh(losses, samples):
            base = self.losses(reference, samples)
            return rule({name: (loss.detach() - base[name]).numpy() for name, loss in losses.items()})

        self.train(weigh, budget, seed + 1)


def load(mixture: str, config: str = "") -> Planted:
    return (Learnable if config == "learnable" else Planted)(mixture, config)
