"""The rows for a GPU, in small on a CPU."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest

from benchmarks import decode, gpu, timing
from benchmarks.timing import measure
from jaxgpt.model.config import GPTConfig

CONFIG = GPTConfig(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
FLAGS = replace(gpu.SMALL, preset="shakespeare-char-cpu", tokenizer="char", block_size=16, n_layer=1)


def test_the_largest_number_of_rows_that_fits_is_found():
    def make(rows):
        def work():
            if rows > 8:
                raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory" if rows % 3 else "CUDA out of memory")
            return rows

        return work

    assert gpu.fitting(make, 64)() == 8
    assert gpu.fitting(make, 4)() == 4
    with pytest.raises(ZeroDivisionError):
        gpu.fitting(lambda rows: 1 // 0, 4)


@pytest.mark.slow
def test_both_sides_train_on_as_many_tokens_and_the_remark_counts_them(tmp_path, monkeypatch):
    flags = replace(FLAGS, out_dir=str(tmp_path / "run"))
    results = measure(gpu.training("gpu-train", flags, "cpu", tokens=64), 1)
    # Processes of their own are seen to serve above, and each imports all anew.
    monkeypatch.setattr(timing, "_process", partial(ThreadPoolExecutor, 1))
    results += measure(gpu.packing("gpu-packed", flags, "cpu", tokens=64), 1)
    assert [(result.failure, result.detail) for result in results] == [(None, "4 rows")] * 4
    ours = results[0]
    said = gpu._utilisation(flags, "cpu", results[:2])
    rate = 64 / ours.median * gpu.flops_per_token(*gpu.sizes(flags))
    assert f"{ours.contestant} {rate / 1e12:.3g} TFLOP/s, first round after {ours.first:.1f} s" in said


def test_tokens_of_both_sides_are_held_to_f32():
    prompts = [[1, 2, 3], [4, 5, 6]]
    ours = decode.ours(prompts, 8, config=CONFIG)()
    assert ours == decode.hugging_face(prompts, 8, config=CONFIG)()
    assert gpu.gaps(CONFIG, prompts, ours, "cpu") < 1e-4
    wrong = [[(token + 1) % 97 for token in row] for row in ours]
    assert gpu.gaps(CONFIG, prompts, wrong, "cpu") > 0.1
