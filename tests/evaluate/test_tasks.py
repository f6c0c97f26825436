import json
import math
import urllib.error

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from jaxgpt.errors import UsageError
from jaxgpt.evaluate import ChoiceScore, Example, Scorer, WordScore, measure_task, read_task
from jaxgpt.hf.convert import save_pretrained
from jaxgpt.model.config import GPTConfig
from jaxgpt.tokenizers import CharTokenizer
from jaxgpt.tokenizers.tokenizer import BPETokenizer

WORDS = (
    "the a quick slow brown red fox dog cat jumps runs over under lazy tired wall house man woman sees finds".split()
)
TEXT = " ".join(np.random.default_rng(0).choice(WORDS, 400))
BPE = BPETokenizer.train([TEXT], 300)
CONFIG = GPTConfig(BPE.vocab_size, 32, 16, 2, 2)


def sentence(rng: np.random.Generator, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(low, high)))


def records(task: str) -> list[dict]:
    """Twenty-four records in a task's own format, some longer than the model's context."""
    rng, found = np.random.default_rng(1), []
    for number in range(24):
        longest = 60 if number % 6 == 5 else 8
        if task == "hellaswag":
            endings = [f"{sentence(rng, 1, 6)} [step] ok." for _ in range(4)]
            texts = {"ctx_a": sentence(rng, 2, longest), "ctx_b": "the fox", "activity_label": "A [title] dog"}
            found.append({**texts, "endings": endings, "label": int(rng.integers(4)), "split": "val"})
        elif task == "lambada":
            found.append({"text": f"{sentence(rng, 2, longest)} {rng.choice(WORDS)}"})
        else:
            choices = [sentence(rng, 1, 6) for _ in range(rng.integers(2, 5))]
            answer = int(rng.integers(len(choices)))
            found.append({"question": sentence(rng, 1, longest), "choices": choices, "answer": answer})
    return found


def laid_out(task: str, record: dict) -> tuple[str, list[str], int]:
    """What the harness makes of a record: the context, what follows, and which is right; written down once more."""
    if task == "hellaswag":

        def clean(text: str) -> str:
            text = text.strip().replace(" [title]", ". ").replace("[step]", "")
            return text.replace("  ", " ")

        context = clean(record["activity_label"] + ": " + record["ctx_a"] + " " + record["ctx_b"].capitalize())
        return context, [clean(ending) for ending in record["endings"]], record["label"]
    if task == "lambada":
        *before, word = record["text"].split(" ")
        return " ".join(before), [word], 0
    return record["question"], record["choices"], record["answer"]


@pytest.mark.parametrize("task", ["hellaswag", "lambada", "multiple_choice"])
def test_every_example_comes_out_as_by_plain_transformers(draw, tmp_path, task):
    save_pretrained(tmp_path / "hf", CONFIG, draw(CONFIG))
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    lines = records(task)
    (tmp_path / "file.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scorer = Scorer(CONFIG, draw(CONFIG), BPE, batch_size=8)
    score = measure_task(scorer, task, read_task(task, tmp_path / "file.jsonl"))
    chosen, normed, right, sums, greedy, cut = [], [], [], [], [], 0
    for line in lines:
        context, choices, answer = laid_out(task, line)
        likelihoods, long = [], False
        for choice in choices:
            before, whole = BPE.encode(context), BPE.encode(f"{context} {choice}")
            tail, first = whole[-33:], len(before) - max(len(whole) - 33, 0)
            long |= len(whole) > 33
            with torch.no_grad():
                log_probs = model(torch.tensor([tail[:-1]])).logits[0].log_softmax(-1)[first - 1 :]
            targets = torch.tensor(tail[first:])
            likelihoods.append(log_probs.gather(1, targets[:, None]).sum().item())
            greedy.append((log_probs.argmax(-1) == targets).all().item())
        chosen.append(int(np.argmax(likelihoods)))
        normed.append(int(np.argmax(np.array(likelihoods) / [len(choice) for choice in choices])))
        right.append(answer)
        sums += likelihoods
        cut += long
    found = score.metrics()
    assert score.cut == cut > 0 and found["examples"] == 24
    if isinstance(score, WordScore):
        np.testing.assert_allclose(score.log_likelihoods, sums, atol=1e-4)
        assert score.greedy.tolist() == greedy
        assert found["perplexity"] == pytest.approx(math.exp(-np.mean(sums)), rel=1e-4)
        return
    assert isinstance(score, ChoiceScore)
    assert (score.chosen.tolist(), score.chosen_normed.tolist(), score.right.tolist()) == (chosen, normed, right)
    hits = np.array(chosen) == right
    assert found["acc"] == hits.mean() and found["acc_norm"] == (np.array(normed) == right).mean()
    assert found["acc_stderr"] == pytest.approx(math.sqrt(hits.mean() * (1 - hits.mean()) / 23))


GOOD = {"question": "a", "choices": ["b", "c"], "answer": 1}


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("multiple_choice", {"question": "a", "answer": 1}, "'choices' must be a list of two or more texts"),
        ("multiple_choice", {**GOOD, "choices": ["b"]}, "'choices' must be a list of two or more texts"),
        ("multiple_choice", {**GOOD, "choices": ["b", 3]}, "'choices' must be a list of two or more texts"),
        ("multiple_choice", {**GOOD, "answer": 2}, "'answer' is 2; it must be the right choice's number, from 0 to 1"),
        ("multiple_choice", {"choices": ["b", "c"], "answer": 1}, "no text in the field 'question'"),
        ("hellaswag", GOOD, "no text in the field 'ctx_a'; there are 'question', 'choices', 'answer'"),
        ("lambada", {"text": "word"}, "'text' must be words, of which the last is to be predicted"),
    ],
    ids=["none", "one", "number", "beyond", "question", "other", "word"],
)
def test_a_record_of_another_shape_is_named_with_its_line(tmp_path, task, record, message):
    good = records(task)[0]
    (tmp_path / "file.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(record)}\n")
    with pytest.raises(UsageError) as error:
        read_task(task, tmp_path / "file.jsonl")
    assert f"file.jsonl:2: {message}" in str(error.value)


def test_a_choice_that_does_not_fit_alone_is_refused(draw):
    scorer = Scorer(CONFIG, draw(CONFIG), BPE, batch_size=8)
    with pytest.raises(UsageError, match="here:7: a choice has [0-9]+ tokens; the model's context is 32"):
        measure_task(scorer, "multiple_choice", [Example("the", ("dog", "x" * 50), 0, "here:7")])


def test_an_empty_context_begins_with_the_end_of_text_or_is_refused(draw):
    scorer = Scorer(CONFIG, draw(CONFIG), BPE, batch_size=8)
    examples = [Example(text, ("the dog", "a cat"), 0, "here:1") for text in ("", "<")]
    both = measure_task(scorer, "multiple_choice", examples)
    assert len(both.right) == 2
    config = GPTConfig(4, 16, 16, 1, 2)
    with pytest.raises(UsageError, match="here:1: the context is empty, and this char tokenizer has no token"):
        measure_task(
            Scorer(config, draw(config), CharTokenizer(" abc")),
            "multiple_choice",
            [Example("", ("a", "b"), 0, "here:1")],
        )


def test_data_that_cannot_be_had_are_named(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    for task in ("hellaswag", "lambada"):
        with pytest.raises(
            UsageError, match=f"{task}.*cannot be downloaded.*fetch it by hand and put it at {tmp_path}"
        ):
            read_task(task, cache_dir=tmp_path)
    with pytest.raises(UsageError, match="multiple_choice has no data of its own"):
        read_task("multiple_choice")
    (tmp_path / "downloads" / "lambada_test_en.jsonl").write_text('{"text": "another file"}\n')
    with pytest.raises(UsageError, match="SHA-256 is .*, not 4aa8d02c"):
        read_task("lambada", cache_dir=tmp_path)


@pytest.mark.parametrize(("nats", "perplexity"), [(math.log(8), 8), (1e4, math.inf), (math.nan, math.nan)])
def test_a_models_perplexity_may_be_beyond_all_floats(nats, perplexity):
    score = WordScore(np.array([-nats, -nats]), np.array([False, False]), 0)
    assert score.metrics()["perplexity"] == pytest.approx(perplexity, nan_ok=True)
