"""Examples with a right answer: labelled texts, pairs of answers, conversations and what the assistant says in them.

And what is measured of answers that a model makes itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxgpt import checks
from jaxgpt.chat.encoded import EncodedPair, LabelledIds
from jaxgpt.chat.examples import labelled_batch, pairs_batch
from jaxgpt.chat.template import Encoded
from jaxgpt.errors import UsageError
from jaxgpt.evaluate.scoring import Row, Scored, Scorer
from jaxgpt.evaluate.texts import TextScore, add_up
from jaxgpt.hosts import fetch
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.classification import confusion_table
from jaxgpt.objectives.outputs import last_scores


@dataclass(frozen=True)
class LabelScore:
    """Counts of the label that each text was taken for.

    Attributes:
        labels: their names.
        counts: (N, N), of each label's texts (rows) how many were taken for which (columns).
    """

    labels: tuple[str, ...]
    counts: Int[np.ndarray, "N N"]

    def metrics(self) -> dict[str, float | int]:
        """Return accuracy, and of each label precision, recall and F1; NaN where no text makes one."""
        right, taken_for, of_label = (x.tolist() for x in (np.diag(self.counts), *map(self.counts.sum, (0, 1))))
        found = {}
        for i, label in enumerate(self.labels):
            taken, there = taken_for[i], of_label[i]
            found |= {
                f"precision of {label}": _share(right[i], taken),
                f"recall of {label}": _share(right[i], there),
                f"F1 of {label}": _share(2 * right[i], taken + there),
            }
        return {"accuracy": _share(sum(right), sum(of_label)), **found, "texts": int(self.counts.sum())}

    def table(self) -> str:
        """Return the confusion matrix with its shares."""
        return confusion_table(self.labels, self.counts)


@dataclass(frozen=True)
class PairScore:
    """The figures of a model that judges pairs of answers.

    Attributes:
        rewards: (M, 2), of the chosen and of the rejected answer.
    """

    rewards: Float[np.ndarray, "M 2"]

    def metrics(self) -> dict[str, float | int]:
        """Return how often the chosen answer has the higher reward, and the means."""
        chosen, rejected = self.rewards.astype(np.float64).T
        return {
            "accuracy": float((chosen > rejected).mean()),
            "margin": float((chosen - rejected).mean()),
            "reward_chosen": float(chosen.mean()),
            "reward_rejected": float(rejected.mean()),
            "pairs": len(chosen),
        }


@dataclass(frozen=True)
class AnswerScore:
    """Means over a policy's own answers.

    Attributes:
        means: by their names.
    """

    means: Mapping[str, float]

    def metrics(self) -> dict[str, float]:
        """Return the means."""
        return dict(self.means)


def measure_labels(scorer: Scorer, texts: Iterable[LabelledIds]) -> LabelScore:
    """Let a classifier label texts.

    Args:
        scorer: a model with labels.
        texts: as `jaxgpt.chat.encode_labelled` makes them with these labels.

    Raises:
        UsageError: there are none, the model has no labels, or a text is of ids or a label that it has not.
    """
    texts = checks.records("texts", texts, LabelledIds, least=1)
    if (labels := scorer.config.labels) is None:
        raise UsageError("labels are None; a classifier has some")
    for i, one in enumerate(texts):
        _check_ids(scorer, f"texts[{i}]", one.ids)
        checks.whole(f"texts[{i}]: label", one.label, 0, len(labels) - 1)
    length, counts = max(len(one.ids) for one in texts), np.zeros((len(labels), len(labels)), int)
    for rows in _batches(scorer, len(texts)):
        batch = labelled_batch(texts, rows, length=length, pad_id=0)
        best = fetch(scorer.read(_scores, batch.tokens, batch.last)).argmax(-1)
        np.add.at(counts, (batch.labels[rows >= 0], best[rows >= 0]), 1)
    return LabelScore(labels, counts)


def measure_pairs(scorer: Scorer, pairs: Iterable[EncodedPair]) -> PairScore:
    """Let a reward model judge pairs.

    Args:
        scorer: a model with one label.
        pairs: as `jaxgpt.chat.encode_pairs` makes them.

    Raises:
        UsageError: there are none, the model has not one label, or an answer has ids that it has not.
    """
    pairs = checks.records("pairs", pairs, EncodedPair, least=1)
    if len(labels := scorer.config.labels or ()) != 1:
        raise UsageError(f"labels are {labels!r}; a reward takes exactly one")
    for i, pair in enumerate(pairs):
        for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            _check_ids(scorer, f"pairs[{i}]: {name}", answer.ids)
    length = max(len(answer.ids) for pair in pairs for answer in (pair.chosen, pair.rejected))
    rewards = []
    for rows in _batches(scorer, len(pairs)):
        batch = pairs_batch(pairs, rows, length=length, pad_id=0)
        # Half of the rows at a time, as each pair is two.
        sides = [fetch(scorer.read(_scores, batch.tokens[:, side], batch.last[:, side])) for side in (0, 1)]
        rewards.append(np.concatenate(sides, axis=1)[rows >= 0])
    return PairScore(np.concatenate(rewards))


def measure_preferences(
    scorer: Scorer, pairs: Iterable[EncodedPair], *, reference: Float[np.ndarray, "M 2"], beta: float
) -> PairScore:
    """Let a policy judge pairs: an answer's reward is how much likelier it is than by the reference, times β.

    Args:
        scorer: the policy (Rafailov et al. 2023).
        pairs: as `jaxgpt.chat.encode_pairs` makes them.
        reference: what `answer_log_probs` gives of the model that training began with.
        beta: β.
    """
    return PairScore(beta * (answer_log_probs(scorer, pairs) - reference))


def answer_log_probs(scorer: Scorer, pairs: Iterable[EncodedPair]) -> Float[np.ndarray, "M 2"]:
    """Return the log-probabilities of each pair's chosen and rejected answer, given the prompt, in nats."""
    pairs = checks.records("pairs", pairs, EncodedPair, least=1)
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    found = (float(one.log_probs.sum(dtype=np.float64)) for one in _learnt(scorer, answers))
    return np.fromiter(found, np.float64, len(answers)).reshape(-1, 2)


def measure_conversations(scorer: Scorer, conversations: Iterable[Encoded]) -> TextScore:
    """Score the assistant's tokens, and the ends of its turns, given all that stands before them.

    Args:
        scorer: the model.
        conversations: as `jaxgpt.chat.encode_conversations` makes them.
    """
    conversations = checks.records("conversations", conversations, Encoded, least=1)
    return TextScore(*add_up(scorer.tokenizer, _learnt(scorer, conversations)), None, len(conversations))


def _learnt(scorer: Scorer, texts: Sequence[Encoded]) -> Iterator[Scored]:
    """Yield what the model says of the tokens of each text that training learns."""
    scored = scorer.score([Row(np.array(one.ids, np.int32)) for one in texts])
    return (found.where(np.array(one.weights[1:]) > 0) for one, found in zip(texts, scored, strict=True))


def _check_ids(scorer: Scorer, name: str, ids: Sequence[int]) -> None:
    """Refuse ids of which the model would make NaN, silently."""
    found = checks.ids(name, ids)
    if not 1 <= len(found) <= scorer.config.n_positions:
        raise UsageError(f"{name} has {len(found)} tokens; the model's context is {scorer.config.n_positions}")
    checks.below(name, found, scorer.config.vocab_size)


@partial(jax.jit, static_argnames="model")
def _scores(model: GPT, params: Any, tokens: Int[Array, "B T"], last: Int[Array, " B"]) -> Float[Array, "B N"]:
    return last_scores(model, params, tokens, last)


def _batches(scorer: Scorer, count: int) -> Iterator[np.ndarray]:
    """Yield the numbers of examples, batch by batch; -1 fills the last up."""
    for start in range(0, count, scorer.batch_size):
        rows = np.arange(start, start + scorer.batch_size)
        yield np.where(rows < count, rows, -1)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
