"""A conversation with a model: what was said, each answer as it comes, and what is done when the context is full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, SupportsIndex, Unpack, get_args

import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxgpt import checks
from jaxgpt.chat.records import Message
from jaxgpt.chat.template import ChatTemplate
from jaxgpt.chat.too_long import cut_messages
from jaxgpt.decode.draft import Draft
from jaxgpt.decode.engine import Stream, stream
from jaxgpt.decode.sampling_config import DEFAULT_COUNT, Overflow, SamplingOptions, Truncate
from jaxgpt.decode.text import TextStream
from jaxgpt.errors import UsageError
from jaxgpt.model.config import GPTConfig
from jaxgpt.notes import note
from jaxgpt.tokenizers.tokenizer import Tokenizer


class Chat:
    """A conversation with a model whose tokenizer has a chat template.

        chat = Chat(*open_model("out-sft"))  # of jaxgpt.runs.weights
        for piece in chat.ask("Who is there?"):
            print(piece, end="", flush=True)

    Attributes:
        messages: what was said so far, the system's message first where there is one. Of an answer that is under way,
            or was left, it has what was given of it; a question without any answer is not kept.
    """

    def __init__(
        self,
        config: GPTConfig,
        params: Any,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        template: ChatTemplate | None = None,
        max_new_tokens: SupportsIndex | None = None,
        stop: Sequence[str] = (),
        truncate: Truncate = "none",
        seed: SupportsIndex = 0,
        dtype: DTypeLike = jnp.float32,
        overflow: Overflow = "error",
        draft: Draft | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> None:
        """Begin with nothing said but the system's message.

        Args:
            config, params, tokenizer: the model, as `open_model` gives it.
            system: the system's message; None or an empty one: none.
            template: lays messages out; None for the tokenizer's own.
            max_new_tokens: of an answer; None for 200, or half of a context that is shorter than 400.
            stop: texts before the first of which an answer ends.
            truncate: "left": of a question that alone is too long, keep the end.
            seed, dtype, draft, sampling: see `generate`. Each answer has a seed of its own, one above the last one's.
            overflow: what happens when the conversation leaves no room for an answer: "error": its oldest turns are
                forgotten, with a note, and only a question that alone is too long is an error; "slide": the model
                reads it in a sliding context.

        Raises:
            UsageError: there is no template, it takes no such messages, or an argument is out of range.
        """
        found = ChatTemplate.of(tokenizer) if template is None else template
        if found is None:
            raise UsageError("the tokenizer has no chat template; give one as template, or train with SFT")
        self._template, self._tokenizer, self._config = found, tokenizer, config
        context = config.n_positions
        count = min(DEFAULT_COUNT, context // 2) if max_new_tokens is None else max_new_tokens
        self._count = checks.whole("max_new_tokens", count, 1)
        self._room = context - self._count
        if overflow == "error" and self._room < 1:
            raise UsageError(
                f"max_new_tokens is {self._count}; it must be below the model's context, {context}, to leave room for "
                "a question, unless the context slides (overflow 'slide')"
            )
        self._slides = checks.choice("overflow", overflow, get_args(Overflow)) == "slide"
        self._truncate = checks.choice("truncate", truncate, get_args(Truncate))
        self._seed = checks.whole("seed", seed, 0, 2**32 - 1, "from 0 to 2^32 - 1, and a whole number")
        self._stop = checks.texts("stop", stop)
        self._stream = partial(
            stream,
            config,
            params,
            max_new_tokens=self._count,
            dtype=dtype,
            overflow=overflow,
            draft=draft,
            coarse=True,
            **sampling,
        )
        self._system = (Message("system", checks.text("system", system)),) if system else ()
        self.messages: tuple[Message, ...] = self._system
        self._ids((*self.messages, Message("user", "?")))  # a template may take no system's message

    def reset(self) -> None:
        """Forget all but the system's message."""
        self.messages = self._system

    def ask(self, text: str) -> Iterator[str]:
        """Return the answer, piece by piece as it is chosen.

        Whoever stops reading stops it; what was read is kept as the answer.

        Raises:
            UsageError: at once: the question is too long, or the template fails on it.
        """
        asked = self._fitting((*self.messages, Message("user", checks.text("text", text))))
        seed, self._seed = self._seed, (self._seed + 1) % 2**32
        return self._answer(asked, self._stream([self._ids(asked)], seed=seed))

    def _answer(self, asked: tuple[Message, ...], steps: Stream) -> Iterator[str]:
        text = TextStream(self._tokenizer, self._stop, self._config.eos_token_ids)
        said = ""
        for piece in text.read(token for [token] in steps if token is not None):
            said += piece
            self.messages = (*asked, Message("assistant", said))
            yield piece
        if not text.ended:
            note(f"an answer was ended at {self._count} tokens; max_new_tokens says at how many")

    def _fitting(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Return messages that leave room for an answer."""
        if self._slides or (size := len(self._ids(messages))) <= self._room:
            return messages
        kept = cut_messages(messages, self._room, self._tokenizer, self._template)
        if kept is None or (kept[-1] != messages[-1] and self._truncate == "none"):
            raise UsageError(
                f"the question makes {size} tokens with what is before it, and alone too many as well: the context of "
                f"{self._config.n_positions} has room for {self._room}, and {self._count} of an answer"
            )
        if forgotten := len(messages) - len(kept):
            note(f"the context of {self._config.n_positions} is full; the {forgotten} oldest messages are forgotten")
        return kept

    def _ids(self, messages: tuple[Message, ...]) -> list[int]:
        return list(self._template.encode(self._tokenizer, messages, add_generation_prompt=True).ids)
