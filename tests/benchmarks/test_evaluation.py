from benchmarks.evaluation import EXAMPLES, STRIDE, TOKENS, write_tasks
from jaxgpt.evaluate import read_task
from jaxgpt.tokenizers import load_tokenizer


def test_the_files_are_in_each_task_s_format_and_of_the_sizes_that_are_stated(tmp_path):
    *tasks, whole, strided = write_tasks(tmp_path)
    examples = {task: read_task(task, file) for _, task, _, file in tasks}
    assert {task: len(found) for task, found in examples.items()} == dict.fromkeys(
        ("hellaswag", "lambada", "multiple_choice"), EXAMPLES
    )
    assert len({example.context for found in examples.values() for example in found}) == 3 * EXAMPLES
    assert strided == [*whole, "--stride", str(STRIDE)]
    text = (tmp_path / "text.txt").read_text(encoding="utf-8")
    assert len(load_tokenizer("gpt2").encode(text)) == TOKENS
