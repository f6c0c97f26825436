import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import checks
from jaxgpt.chat import DEFAULT_TEMPLATE, add_template, encode_conversations
from jaxgpt.chat.encoded import EncodedPair, LabelledIds
from jaxgpt.chat.records import Conversation, Message
from jaxgpt.chat.template import Encoded
from jaxgpt.data.batches import Batch
from jaxgpt.errors import UsageError
from jaxgpt.evaluate import (
    Document,
    Example,
    Row,
    Scorer,
    measure_conversations,
    measure_labels,
    measure_pairs,
    measure_preferences,
    measure_task,
    measure_texts,
    measure_windows,
)
from jaxgpt.model.config import GPTConfig
from jaxgpt.model.gpt import GPT
from jaxgpt.objectives.outputs import last_scores
from jaxgpt.tokenizers import CharTokenizer
from jaxgpt.tokenizers.tokenizer import BPETokenizer

CONFIG = GPTConfig(16, 16, 16, 1, 2)
CHARS = CharTokenizer("abcdefghijklmnop")


def ids(length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(length).integers(16, size=length).tolist())


@partial(jax.jit, static_argnums=0)  # outside it each operation is a program of its own, for each length
def scores(config: GPTConfig, params, tokens: jax.Array) -> jax.Array:
    return last_scores(GPT(config), params, tokens, jnp.array([tokens.shape[1] - 1]))


def best(config: GPTConfig, params, text: tuple[int, ...]) -> np.ndarray:
    return np.asarray(scores(config, params, jnp.array([text])))[0]


def test_a_classifier_gets_accuracy_and_what_is_taken_for_what(draw):
    config = replace(CONFIG, labels=("no", "perhaps", "yes"))
    params = jax.device_put(draw(config))
    texts = [LabelledIds(ids(length), length % 3) for length in range(3, 14)]
    score = measure_labels(Scorer(config, params, CHARS, batch_size=4), texts)
    counts = np.zeros((3, 3), int)
    for text in texts:
        counts[text.label, best(config, params, text.ids).argmax()] += 1
    assert (score.counts == counts).all()
    found = score.metrics()
    assert found["accuracy"] == counts.trace() / 11 and found["texts"] == 11
    assert found["recall of yes"] == pytest.approx(counts[2, 2] / counts[2].sum())
    assert "accuracy" in score.table() and "as perhaps" in score.table()


def test_a_reward_model_gets_pair_accuracy(draw):
    config = replace(CONFIG, labels=("reward",))
    params = jax.device_put(draw(config))
    answers = [[Encoded(ids(n + side), (0.0,) + (1.0,) * (n + side - 1)) for side in (0, 3)] for n in range(3, 12)]
    pairs = [EncodedPair(chosen, rejected, 0.0) for chosen, rejected in answers]
    score = measure_pairs(Scorer(config, params, CHARS, batch_size=4), pairs)
    expected = np.array([[best(config, params, one.ids)[0] for one in pair] for pair in answers])
    np.testing.assert_allclose(score.rewards, expected, atol=1e-5)
    assert score.metrics()["accuracy"] == (expected[:, 0] > expected[:, 1]).mean()


def test_nothing_and_what_has_no_end_are_refused(draw, monkeypatch):
    monkeypatch.setattr(checks, "MOST_READ", 5)
    scorer, answer = Scorer(CONFIG, draw(CONFIG), CHARS, batch_size=2), Encoded((1, 2), (0.0, 1.0))
    preferences = partial(measure_preferences, reference=np.zeros((1, 2)), beta=0.1)
    batch = Batch(np.ones((1, 2), np.int32), np.ones((1, 2), np.int32), np.ones((1, 2), np.float32))
    pair = EncodedPair(answer, answer, 0.0)
    for measure, one in (
        (measure_labels, LabelledIds((1, 2), 0)),
        (measure_pairs, pair),
        (preferences, pair),
        (measure_conversations, answer),
        (measure_windows, batch),
        (measure_texts, Document(np.array([1, 2]), 1, None)),
        (lambda scorer, examples: measure_task(scorer, "lambada", examples), Example("a", ("b",), 0, "")),
    ):
        with pytest.raises(UsageError, match="1 or more|none of the 0 texts"):
            measure(scorer, [])
        with pytest.raises(UsageError, match="an iterator of more than 5 items"):
            measure(scorer, itertools.repeat(one))


def test_examples_of_another_model_are_refused(draw):
    configs = {names: replace(CONFIG, labels=names) for names in (None, ("reward",), ("no", "yes"))}
    plain, reward, classifier = (Scorer(one, draw(one), CHARS, batch_size=2) for one in configs.values())
    good = Encoded((1, 2), (0.0, 1.0))
    pair = partial(EncodedPair, good, margin=0.0)
    for measure, says in (
        (lambda: measure_labels(plain, [LabelledIds((1,), 0)]), "labels are None; a classifier has some"),
        (lambda: measure_labels(classifier, [LabelledIds((1, 16), 0)]), r"texts\[0\] has the id 16"),
        (lambda: measure_labels(classifier, [LabelledIds((1,), 0), LabelledIds((1,), -1)]), r"texts\[1\]: label is -1"),
        (lambda: measure_labels(classifier, [LabelledIds((), 0)]), r"texts\[0\] has 0 tokens"),
        (lambda: measure_pairs(classifier, [pair(good)]), r"labels are \('no', 'yes'\); a reward takes exactly one"),
        (lambda: measure_pairs(reward, [pair(Encoded((1, -1), (0.0, 1.0)))]), r"pairs\[0\]: rejected has the id -1"),
        (lambda: measure_pairs(reward, [pair(Encoded((1,) * 17, (1.0,) * 17))]), "has 17 tokens; the model's context"),
    ):
        with pytest.raises(UsageError, match=says):
            measure()


def test_of_a_conversation_the_assistants_tokens_alone_count(draw):
    tokenizer = add_template(BPETokenizer.train(["hello there, what is it? it is nothing."], 260), DEFAULT_TEMPLATE)
    config = GPTConfig(tokenizer.vocab_size, 32, 16, 1, 2)
    messages = (
        Message("user", "hello"),
        Message("assistant", "it is"),
        Message("user", "?"),
        Message("assistant", "no"),
    )
    encoded = encode_conversations([Conversation(messages, "")], tokenizer, DEFAULT_TEMPLATE, length=31)
    scorer = Scorer(config, draw(config), tokenizer, batch_size=2)
    score = measure_conversations(scorer, encoded)
    learnt = np.array(encoded[0].weights[1:]) > 0
    [whole] = scorer.score([Row(np.array(encoded[0].ids))])
    assert score.nats == pytest.approx(-whole.log_probs[learnt].sum(), rel=1e-6)
    assert score.tokens == learnt.sum() and score.bytes == len("it is" + "no")
