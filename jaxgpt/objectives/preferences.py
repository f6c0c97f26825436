"""Learning from pairs of answers: a reward model, and direct preference optimisation with its reference model."""

import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import log_sigmoid
from jaxtyping import Float

from jaxgpt import checks
from jaxgpt.chat.examples import Pairs
from jaxgpt.errors import UsageError
from jaxgpt.files import regular, replacing
from jaxgpt.hosts import fetch
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.base import Objective, Params, Sums
from jaxgpt.objectives.dpo_config import DPOConfig, DPOLoss
from jaxgpt.objectives.outputs import last_scores, sequence_log_probs


def reward(model: GPT, *, centring: float | None = None) -> Objective:
    """The chosen answer's reward is to be the higher one (Bradley & Terry 1952; Ouyang et al. 2022, equation 1).

    The loss of a pair is -log σ(r_chosen - r_rejected - margin), with the margin of Touvron et al. 2023, equation 2,
    where the data has one. A reward is the model's one score at the answer's last token. Metrics: accuracy, margin
    (r_chosen - r_rejected), reward_chosen, reward_rejected.

    Args:
        model: one whose config has one label.
        centring: coefficient of (r_chosen + r_rejected)², added to the loss so that rewards lie around 0, which the
            rest leaves open (Eisenstein et al. 2023, equation 2); None for none.

    Raises:
        UsageError: the model has not one score, or `centring` is out of range.
    """
    if (labels := model.config.labels) is None or len(labels) != 1:
        raise UsageError(f"labels are {labels!r}; a reward takes exactly one")
    wanted = "a positive number, or none"
    if centring is not None and not 0 < checks.real("centring", centring, wanted) < math.inf:
        raise checks.refusal("centring", centring, wanted)
    return partial(_reward, model, centring)


def _reward(model: GPT, centring: float | None, params: Params, batch: Pairs, key: Array | None) -> Sums:
    rows = batch.tokens.reshape(-1, batch.tokens.shape[-1])
    rewards = last_scores(model, params, rows, batch.last.reshape(-1), key).reshape(-1, 2)
    chosen, rejected = rewards.T
    losses = -log_sigmoid(chosen - rejected - batch.margin)
    if centring is not None:
        losses += centring * (chosen + rejected) ** 2
    return _sums(batch, losses, rewards)


def dpo(
    model: GPT, *, loss: DPOLoss = "sigmoid", beta: float, label_smoothing: float = 0.0, length_normalised: bool = False
) -> Objective:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7): rewards without a reward model.

    An answer's score is its log-probability less that under the reference model, and δ the chosen answer's score less
    the rejected one's. The loss of a pair is, as in TRL, one of

    - sigmoid: -log σ(β δ); with label smoothing ε, (1 - ε) · -log σ(β δ) + ε · -log σ(-β δ), "conservative DPO"
      (Mitchell 2023);
    - robust: the loss without bias where a share ε of the labels is wrong, (1 - ε) · -log σ(β δ) - ε · -log σ(-β δ),
      over 1 - 2 ε (Chowdhury et al. 2024);
    - hinge: max(0, 1 - β δ) (SLiC, Zhao et al. 2023);
    - ipo: (δ - 1 / (2 β))² with scores per token, as its authors do (Azar et al. 2023, equation 17).

    Metrics: reward_chosen and reward_rejected (β times the answer's score), margin (their difference), accuracy (how
    often it is positive), logp_chosen, logp_rejected. They are of whole answers, whatever the loss.

    Args:
        model: the policy.
        loss: its kind.
        beta: β; the higher, the closer to the reference.
        label_smoothing: ε, the share of labels that may be wrong: for sigmoid and robust.
        length_normalised: take scores per token, as ipo always does.

    Raises:
        UsageError: an argument out of range, or label smoothing with a loss that has none.
    """
    return partial(_dpo, model, DPOConfig(loss, beta, label_smoothing, length_normalised))


def _dpo(model: GPT, config: DPOConfig, params: Params, batch: Pairs, key: Array | None) -> Sums:
    if batch.reference is None:
        raise ValueError("pairs without a reference; wrap the objective in `with_reference`")
    log_probs = _log_probs(model, params, batch, key)
    scores = log_probs - batch.reference
    # A pair that only fills up has no tokens, and must stay free of NaN.
    count = jnp.maximum(batch.weights.sum(-1), 1) if config.length_normalised or config.loss == "ipo" else 1
    chosen, rejected = (scores / count).T
    losses = _LOSSES[config.loss](chosen - rejected, config.beta, config.label_smoothing)
    return _sums(batch, losses, config.beta * scores, logp_chosen=log_probs[:, 0], logp_rejected=log_probs[:, 1])


def with_reference(objective: Objective, model: GPT, reference_params: Callable[[Params], Params]) -> Objective:
    """Let an objective have `batch.reference` also where the batch doesn't bring it, by a forward pass in each step.

    Args:
        objective: what reads it.
        model: the reference, without dropout.
        reference_params: the trained parameters → the reference's; no gradient flows through it. It may leave adapters
            off, so that no second model is needed.
    """
    return partial(_referred, objective, model, reference_params)


def _referred(
    objective: Objective,
    model: GPT,
    reference_params: Callable[[Params], Params],
    params: Params,
    batch: Pairs,
    key: Array | None,
) -> Sums:
    if batch.reference is None:
        reference = _log_probs(model, reference_params(jax.lax.stop_gradient(params)), batch, None)
        batch = replace(batch, reference=reference)
    return objective(params, batch, key)


def reference_log_probs(
    model: GPT,
    params: Params,
    batches: Iterable[Pairs],
    each: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> Float[np.ndarray, "M 2"]:
    """Return `Pairs.reference` of all pairs, one batch after another: once for a whole run.

    Args:
        model, params: the reference.
        batches: of pairs, where `each` wants them.
        each: lets each device read rows of its own; see `jaxgpt.mesh.OwnRows`.
    """
    log_probs = each(jax.jit(lambda params, batch: _log_probs(model, params, batch, None)))
    return np.concatenate([fetch(log_probs(params, batch)) for batch in batches])


def write_reference(file: Path, reference: Mapping[str, np.ndarray], fingerprint: str) -> None:
    """Write `Pairs.reference` of each part of the data down: once, for a run and its resumes.

    Args:
        file: its .npz.
        reference: by the parts' names.
        fingerprint: of the pairs.
    """
    with replacing(file) as part, open(part, "wb") as stream:
        np.savez(stream, pairs=fingerprint, **reference)  # pyright: ignore[reportArgumentType]


def read_reference(file: Path, sizes: Mapping[str, int], fingerprint: str) -> dict[str, np.ndarray]:
    """Read what `write_reference` wrote.

    Args:
        file: its .npz.
        sizes: of the parts, by their names.
        fingerprint: of the pairs.

    Raises:
        UsageError: it is not there, damaged, or of other pairs.
    """
    try:
        with np.load(regular(file), allow_pickle=False) as found:
            reference, of_pairs = {name: found[name] for name in sizes}, str(found["pairs"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{file}: can't be read: {error}; a run of dpo needs it to go on") from None
    if of_pairs != fingerprint:
        raise UsageError(f"{file}: is of other pairs than those of this run; begin a new run with them")
    for name, size in sizes.items():
        if reference[name].shape != (size, 2) or not np.isfinite(reference[name]).all():
            raise UsageError(f"{file}: {name} must have two finite numbers for each of {size} pairs")
    return reference


def no_reference(sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return zeros in the shape of a reference, for where only shapes matter."""
    return {name: np.zeros((size, 2), np.float32) for name, size in sizes.items()}


def _log_probs(model: GPT, params: Params, batch: Pairs, key: Array | None) -> Float[Array, "B 2"]:
    """Return the log-probability of each answer, by one forward pass."""
    tokens, targets, weights = (
        array.reshape(-1, array.shape[-1]) for array in (batch.tokens, batch.targets, batch.weights)
    )
    return sequence_log_probs(model, params, tokens, targets, weights, key).reshape(-1, 2)


def _sums(batch: Pairs, losses: Float[Array, " B"], rewards: Float[Array, "B 2"], **more: Float[Array, " B"]) -> Sums:
    """Add up the losses and what the rewards say, over the pairs that count."""
    counts = (batch.weights != 0).any((1, 2)).astype(jnp.float32)
    chosen, rejected = rewards.T
    named = {
        "accuracy": (chosen > rejected).astype(jnp.float32),
        "margin": chosen - rejected,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        **more,
    }
    weight = counts.sum()
    metrics = {name: ((values * counts).sum(), weight) for name, values in named.items()}
    return Sums((losses * counts).sum(), weight, metrics)


def _sigmoid(delta: Array, beta: float, smoothing: float) -> Array:
    return -(1 - smoothing) * log_sigmoid(beta * delta) - smoothing * log_sigmoid(-beta * delta)


def _robust(delta: Array, beta: float, smoothing: float) -> Array:
    straight, flipped = -log_sigmoid(beta * delta), -log_sigmoid(-beta * delta)
    return ((1 - smoothing) * straight - smoothing * flipped) / (1 - 2 * smoothing)


def _hinge(delta: Array, beta: float, _: float) -> Array:
    return jax.nn.relu(1 - beta * delta)


def _ipo(delta: Array, beta: float, _: float) -> Array:
    return (delta - 1 / (2 * beta)) ** 2


_LOSSES: dict[str, Callable[[Array, float, float], Array]] = {
    "sigmoid": _sigmoid,
    "robust": _robust,
    "hinge": _hinge,
    "ipo": _ipo,
}
