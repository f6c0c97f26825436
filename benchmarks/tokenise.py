"""A text becomes token files, by one process and by two; and how much of that is reading, which one process does.

What one process reads, others encode. So as many cores are kept busy as encoding takes longer than reading.
"""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.bpe import plays
from benchmarks.timing import Benchmark, Result, Work
from jaxgpt.data import load_corpus
from jaxgpt.data.encoding.cutting import cut_into_tasks
from jaxgpt.data.opening import open_source
from jaxgpt.data.sources import Documents
from jaxgpt.data.special_texts import SpecialTexts
from jaxgpt.tokenizers import BPETokenizer, load_tokenizer
from jaxgpt.tokenizers.roles import END_OF_TEXT

COPIES, VOCAB_SIZE, DOCUMENT = 20, 4096, 2400  # of all plays; ids; characters


def benchmarks() -> list[Benchmark]:
    """Texts and records, as they are and compressed, and GPT-2's vocabulary beside one that was trained."""
    return [
        _benchmark("text", f"text files, {VOCAB_SIZE:,} ids", _texts),
        _benchmark("gpt2", "text files, GPT-2's ids", _texts, "gpt2"),
        _benchmark("jsonl", f"JSON lines, {VOCAB_SIZE:,} ids", _lines),
        _benchmark("gz", f"JSON lines in gzip, {VOCAB_SIZE:,} ids", _compressed_lines),
    ]


def _benchmark(name: str, what: str, write: Callable[[Path], None], tokenizer: str = "bpe") -> Benchmark:
    contestants = {
        "two processes": partial(_encoding, write, tokenizer, 2),
        "this process": partial(_encoding, write, tokenizer, 0),
        "reading alone": partial(_reading, write, tokenizer),
    }
    size = COPIES * sum(map(len, plays())) / 1e6
    return Benchmark(f"tokenise-{name}", f"{size:.0f} MB in {what}", "call", 1, contestants, rounds=3, remark=_remark)


def _remark(results: Sequence[Result]) -> str:
    two, one, reading = (result.best for result in results)
    return (
        f"Two processes take {two / one:.2f} of the time of one. Reading takes {reading / one:.3f} of it, and so keeps "
        f"{one / reading - 1:.0f} cores busy with encoding."
    )


def _encoding(write: Callable[[Path], None], name: str, processes: int) -> Work:
    held, tokenizer = _prepare(write, name)
    data, cache = Path(held.name) / "data", Path(held.name) / "cache"

    def work(held: object = held) -> None:
        shutil.rmtree(cache, ignore_errors=True)
        load_corpus(data, tokenizer, cache_dir=cache, block_size=8, workers=processes)

    return work


def _reading(write: Callable[[Path], None], name: str) -> Work:
    """Do what one process does for all: read, cut and send, without waiting for anybody."""
    held, tokenizer = _prepare(write, name)
    data = Path(held.name) / "data"

    def work(held: object = held) -> None:
        source, seen = open_source(data), SpecialTexts([END_OF_TEXT])
        source.fingerprint()
        watched: Documents = ((split, seen.watch(pieces)) for split, pieces in source.all_documents())
        for task in cut_into_tasks(watched, tokenizer):
            pickle.dumps(task.texts)

    return work


def _prepare(write: Callable[[Path], None], name: str) -> tuple[tempfile.TemporaryDirectory[str], BPETokenizer]:
    """Return a folder, which is gone when nothing holds it, with data in it, and the tokenizer."""
    held = tempfile.TemporaryDirectory(prefix="tokenise-")
    (data := Path(held.name) / "data").mkdir()
    for number in range(COPIES):
        write(data / f"{number:03}")
    tokenizer = load_tokenizer("gpt2") if name == "gpt2" else BPETokenizer.train(plays(), VOCAB_SIZE)
    assert isinstance(tokenizer, BPETokenizer)
    return held, tokenizer


def _texts(path: Path) -> None:
    path.with_suffix(".txt").write_text("\n".join(plays()), encoding="utf-8")


def _lines(path: Path) -> None:
    path.with_suffix(".jsonl").write_text(_rows(), encoding="utf-8")


def _compressed_lines(path: Path) -> None:
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(_rows().encode(), 6))


def _rows() -> str:
    text = "\n".join(plays())
    rows = (text[begin : begin + DOCUMENT] for begin in range(0, len(text), DOCUMENT))
    return "".join(f"{json.dumps({'text': row})}\n" for row in rows)
