"""Text ⇄ token ids.

A tokenizer is opened by name or folder, behind one interface: characters, a byte-level BPE of one's own, GPT-2's,
or any other `tokenizer.json` by the optional package `tokenizers`.
Nothing here waits for JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.tokenizers.bpe import BPE
    from jaxgpt.tokenizers.char import CharTokenizer
    from jaxgpt.tokenizers.hf_tokenizer import HFTokenizer
    from jaxgpt.tokenizers.stream import StreamDecoder
    from jaxgpt.tokenizers.tokenizer import BPETokenizer, Tokenizer, load_tokenizer

__all__ = ["BPE", "BPETokenizer", "CharTokenizer", "HFTokenizer", "StreamDecoder", "Tokenizer", "load_tokenizer"]
__getattr__, __dir__ = on_first_use(__name__)
