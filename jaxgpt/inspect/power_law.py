"""Loss over compute: a power law through runs of several sizes, and where they lie on it (Kaplan et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jax import Array
from jaxtyping import Float
from matplotlib.figure import Figure

from jaxgpt.errors import UsageError
from jaxgpt.inspect.drawing import BLUE, ORANGE

Numbers = Array | np.ndarray | list[int] | list[float]
# Tokens per parameter with the least loss for the compute (Hoffmann et al. 2022).
CHINCHILLA = 20


@dataclass(frozen=True)
class PowerLaw:
    """y = factor · x^-exponent.

    Attributes:
        factor: y at x = 1.
        exponent: positive where y falls.
        standard_error: of the exponent, as far as the points' scatter about the line tells.
    """

    factor: float
    exponent: float
    standard_error: float

    def __call__(self, x: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """Return y at each x."""
        return self.factor * np.asarray(x, float) ** -self.exponent


def fit_power_law(x: Numbers, y: Numbers) -> PowerLaw:
    """Return the power law through points, by least squares of the logarithms.

    Raises:
        UsageError: fewer than three points, all at one x, or one that is not positive.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 3 or len(set(x)) < 2:
        raise UsageError(f"points: {x.shape} of x and {y.shape} of y; there must be three pairs or more, at unequal x")
    if not (np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)).all():
        raise UsageError("points: a power law is fitted to positive numbers")
    logs, target = np.log(x) - np.log(x).mean(), np.log(y)
    slope = (logs * target).sum() / (logs**2).sum()
    rest = target - target.mean() - slope * logs
    error = np.sqrt((rest**2).sum() / (len(x) - 2) / (logs**2).sum())
    return PowerLaw(float(np.exp(target.mean() - slope * np.log(x).mean())), float(-slope), float(error))


def plot_scaling(parameters: Numbers, tokens: Numbers, losses: Numbers | None = None) -> Figure:
    """Draw runs by parameters N and tokens D beside Chinchilla's 20 tokens a parameter, and loss over C = 6 N D.

    Args:
        parameters, tokens: of each run.
        losses: of each run; at three amounts of compute or more they get a power law.
    """
    n, d = np.asarray(parameters, float), np.asarray(tokens, float)
    compute = 6 * n * d
    figure = Figure(figsize=(5.5 if losses is None else 11, 4), layout="constrained")
    axes = figure.subplots(1, 1 if losses is None else 2, squeeze=False)[0]
    ends = np.asarray([min(n.min(), np.sqrt(compute.min() / 120)), max(n.max(), np.sqrt(compute.max() / 120))])
    ends = ends * np.asarray([0.7, 1.4])
    axes[0].plot(n, d, "o", color=BLUE, label="runs")
    axes[0].plot(ends, CHINCHILLA * ends, color=ORANGE, label="20 tokens a parameter")
    best = np.sqrt(compute / (6 * CHINCHILLA))
    axes[0].plot(best, CHINCHILLA * best, "x", color=ORANGE, label="best for each run's compute")
    axes[0].set(xscale="log", yscale="log", xlabel="parameters N", ylabel="tokens D")
    if losses is not None:
        y = np.asarray(losses, float)
        axes[1].plot(compute, y, "o", color=BLUE, label="runs")
        if len(set(compute)) > 2:
            law, order = fit_power_law(compute, y), np.sort(compute)
            label = f"C^-{law.exponent:.3f} (± {law.standard_error:.3f})"
            axes[1].plot(order, law(order), color=ORANGE, label=label)
        axes[1].set(xscale="log", yscale="log", xlabel="compute C = 6 N D (FLOP)", ylabel="loss (nats)")
    for place in axes:
        place.grid(alpha=0.3, which="both")
        place.legend()
    return figure
