"""lm-evaluation-harness's door to a model: registered there as `jaxgpt`, which `jaxgpt-eval` calls.

Tokens, truncation on the left, windows and stop strings are as of the harness's own `hf` model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import lm_eval.models  # noqa: F401 - it registers its own models, and must come before the class below
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jaxgpt import checks
from jaxgpt.chat.records import Message
from jaxgpt.chat.template import ChatTemplate
from jaxgpt.commands import called
from jaxgpt.decode.engine import stream
from jaxgpt.decode.text import TextStream
from jaxgpt.devices import compute_dtype, start_devices
from jaxgpt.errors import UsageError, did_you_mean
from jaxgpt.evaluate.opening import open_scorer
from jaxgpt.evaluate.scoring import Row
from jaxgpt.flags import ComputeType, Device, Quantize
from jaxgpt.progress import bar

MAX_GEN_TOKS = 256
DEVICE = "cuda:0"
GENERATION = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")


@register_model("jaxgpt")
class HarnessModel(TemplateLM):
    """A run's folder, a folder of weights or a name on the hub, as the harness sees models.

    Attributes:
        scorer: the model on its devices.
        max_length: the longest context.
        max_gen_toks: tokens to generate where a task does not say.
    """

    def __init__(
        self,
        path: str,
        *,
        checkpoint: int | str | None = None,
        dtype: str = "auto",
        quantize: str | None = None,
        fsdp: int | str = 1,
        tensor: int | str = 1,
        max_length: int | str | None = None,
        max_gen_toks: int | str = MAX_GEN_TOKS,
        allow_pickle: bool | str = False,
        batch_size: int | str | None = None,
        max_batch_size: int | str | None = None,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        """Open a model by `--model_args path=…`; `--batch_size auto` is 8 rows a device.

        Raises:
            UsageError: an argument that there is not, or is out of range; see also `jaxgpt.runs.open_model`.
        """
        super().__init__()
        if unknown:
            name = next(iter(unknown))
            known = ("path", "checkpoint", "dtype", "quantize", "fsdp", "tensor", "max_length", "max_gen_toks")
            raise UsageError(
                f"--model_args: there is no {name!r}; valid are {', '.join(known)}{did_you_mean(name, known)}"
            )
        if quantize is not None:
            checks.choice("--model_args: quantize", quantize, get_args(Quantize))
        checks.choice("--model_args: dtype", dtype, get_args(ComputeType))
        rows = None if batch_size is None or str(batch_size).startswith("auto") else _count("--batch_size", batch_size)
        if rows is None and max_batch_size is not None:
            rows = _count("--max_batch_size", max_batch_size)
        # Without --device the harness says cuda:0, wherever it is.
        kind = "auto" if device in (None, DEVICE) else device.partition(":")[0]
        start_devices(checks.choice("--device", kind, get_args(Device)))
        self.scorer = open_scorer(
            path,
            checkpoint=checkpoint,
            allow_pickle=checks.flag("--model_args: allow_pickle", allow_pickle),
            quantize=quantize,
            batch_size=rows,
            dtype=compute_dtype(dtype),
            fsdp=_count("--model_args: fsdp", fsdp),
            tensor=_count("--model_args: tensor", tensor),
        )
        self.tokenizer: Any = self.scorer.tokenizer
        most = self.scorer.config.n_positions
        self.max_length = most if max_length is None else _count("--model_args: max_length", max_length)
        if self.max_length > most:
            raise UsageError(f"--model_args: max_length is {max_length}; the model's context is {most}")
        self.max_gen_toks, self._name = _count("--model_args: max_gen_toks", max_gen_toks), path

    @property
    def eot_token_id(self) -> int:
        """The id that ends texts, and stands before those that are scored from their first token on.

        Characters have none; there it is the line end, which their samples begin with, too.
        """
        if (eos := self.tokenizer.eos_token_id) is not None:
            return eos
        try:
            return self.tokenizer.encode_part("\n")[0]
        except (UsageError, IndexError):
            raise UsageError(f"{self._name}: its tokenizer has no end-of-text token, and no line end") from None

    @property
    def tokenizer_name(self) -> str:
        """Name the tokenizer, where requests are cached."""
        return f"{self.tokenizer.name}-{self.tokenizer.fingerprint[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return a text's ids; special tokens that it spells are read as such, as by Hugging Face's tokenizers."""
        ids, begin = self.tokenizer.encode_part(string, True), list(self.tokenizer.ends.begin)
        return ids if add_special_tokens is False or ids[: len(begin)] == begin else [*begin, *ids]

    def tok_decode(self, tokens: Iterable[int]) -> str:
        """Return the text of ids, without special tokens."""
        special = set(self.tokenizer.special_tokens.values())
        return self.tokenizer.decode([token for token in tokens if token not in special])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as a text; without the prompt for an answer it ends within the last message."""
        template = ChatTemplate.of(self.tokenizer)
        if template is None:
            raise UsageError(
                f"--apply_chat_template: {self._name} has no chat template; {called('train')} sft gives it one"
            )
        messages = [Message(entry["role"], entry["content"]) for entry in chat_history]
        text = template.render(self.tokenizer, messages, add_generation_prompt)
        if add_generation_prompt:
            return text
        last = messages[-1].content.strip()
        return text[: text.rindex(last) + len(last)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        rows = []
        for texts, context, continuation in requests:
            if len(continuation) > self.max_length:
                where = repr(texts[1])[:80] if texts else "a text"
                raise UsageError(f"{where} has {len(continuation)} tokens; the context is {self.max_length}")
            ids = np.array([*context, *continuation][-(self.max_length + 1) :], np.int32)
            rows.append(Row(ids, len(ids) - len(continuation)))
        found = []
        total = sum(len(row.ids) - row.first for row in rows)
        for (texts, *_), scored in zip(requests, self.scorer.score(rows, total=total), strict=True):
            answer = float(scored.log_probs.sum(dtype=np.float64)), bool(scored.likeliest.all())
            found.append(answer)
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return each text's log-likelihood, by windows of the context, the last of which keeps all of its context."""
        windows, counts = [], []
        for request in requests:
            (text,) = request.args
            found = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            windows += [(None, *make_disjoint_window(window)) for window in found]
            counts.append(len(windows))
        each = np.array([likelihood for likelihood, _ in self._loglikelihood_tokens(windows)])
        totals = [float(part.sum()) for part in np.split(each, counts)[: len(counts)]]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return each context's continuation, up to the first of its stop strings."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        answers = [""] * len(requests)
        shown = self.scorer.progress and not disable_tqdm
        with bar("generate_until", total=len(requests), unit="answers", show=shown) as done:
            for numbers in groups.values():
                how: dict[str, Any] = {**normalize_gen_kwargs(requests[numbers[0]].args[1], self.max_gen_toks)}
                contexts = {number: self._context(requests[number].args[0], how["max_gen_toks"]) for number in numbers}
                numbers.sort(key=lambda number: -len(contexts[number]))
                for start in range(0, len(numbers), self.scorer.batch_size):
                    batch = numbers[start : start + self.scorer.batch_size]
                    for number, text in zip(batch, self._generate([contexts[n] for n in batch], how), strict=True):
                        answers[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    done.update(len(batch))
        return answers

    def _context(self, text: str, max_gen_toks: int) -> list[int]:
        """Return a context's ids, the last of them where there is no room for all."""
        if (room := self.max_length - max_gen_toks) < 1:
            raise UsageError(
                f"{max_gen_toks} tokens to generate leave no room for a prompt in a context of {self.max_length}; "
                "--gen_kwargs max_gen_toks=N, or --model_args max_gen_toks=N"
            )
        return (self.tok_encode(text) or [self.eot_token_id])[-room:]

    def _generate(self, contexts: list[list[int]], how: dict[str, Any]) -> list[str]:
        """Return continuations of contexts in one batch, which ends with the last row that has come to its end."""
        if unknown := [name for name in how if name not in GENERATION]:
            raise UsageError(f"--gen_kwargs: {unknown[0]} is not supported; valid are {', '.join(GENERATION)}")
        eos = self.tokenizer.eos_token_id
        stop = handle_stop_sequences(how["until"], eos=None if eos is None else self.tokenizer.decode([eos]))
        config, ends = self.scorer.config, self.scorer.config.eos_token_ids
        stops = [term for term in stop if term]
        texts = [TextStream(self.tokenizer, stops, ends, after=context) for context in contexts]
        chosen: list[list[int]] = [[] for _ in contexts]
        sampling = {name: how[name] for name in ("top_k", "top_p") if how.get(name) is not None}
        steps = stream(
            config,
            self.scorer.params,
            contexts,
            max_new_tokens=how["max_gen_toks"],
            dtype=self.scorer.model.dtype,
            temperature=how.get("temperature", 0.0) if how["do_sample"] else 0.0,
            **sampling,
        )
        for step in steps:
            for text, ids, token in zip(texts, chosen, step, strict=True):
                if token is not None and token not in ends and not text.ended:
                    ids.append(token)
                    text.push(token)
                text.ended |= token is None or token in ends
            if all(text.ended for text in texts):
                break
        return [postprocess_generated_text(self.tok_decode(ids), stop, None) for ids in chosen]


def _count(name: str, value: Any) -> int:
    """Return a number, which the harness hands on as a text where a command has it so."""
    return checks.whole(name, int(value) if isinstance(value, str) and value.isdecimal() else value, 1)
