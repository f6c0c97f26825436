"""Decoding: a model, its parameters and prompts come in; new tokens go out, all at once or as they are chosen.

In: a `GPTConfig`, a tree of parameters, a ragged list of prompts as ids, and how to choose: `Sampling`.
Out: each row's new ids, and at the text's level text up to a stop string.

Rows end with the config's own end ids, and ids that only pad its embedding table are never chosen, unless other ones
are asked for. Stop strings belong to texts, not to ids:

    text = TextStream(tokenizer, stop=["\\n\\n"], end_ids=config.eos_token_ids)  # of jaxgpt.decode.text
    for [token] in stream(config, params, [tokenizer.encode(prompt)], max_new_tokens=100):
        print(text.push(token), end="")
        if text.ended:
            break
    print(text.flush())

`Chat` keeps a conversation with a model that has a chat template.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.decode.continuous import generate_many
    from jaxgpt.decode.dialogue import Chat
    from jaxgpt.decode.engine import generate, stream
    from jaxgpt.decode.sampling_config import Sampling

__all__ = ["Chat", "Sampling", "generate", "generate_many", "stream"]
__getattr__, __dir__ = on_first_use(__name__)
