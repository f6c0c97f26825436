"""Text comes in; token ids, token files and batches go out.

Nothing here but `batches` and `examples` waits for JAX. A tokenizer is opened by name or folder, a corpus by name or
path, and what post-training reads (`records`) by path.
"""

from jaxgpt.lazy import on_first_use
from jaxgpt.text.bpe import BPE
from jaxgpt.text.corpus import Corpus, load_corpus
from jaxgpt.text.token_files import TokenFile
from jaxgpt.text.tokenizers import BPETokenizer, CharTokenizer, StreamDecoder, Tokenizer, load_tokenizer

__all__ = [
    "BPE",
    "BPETokenizer",
    "CharTokenizer",
    "Corpus",
    "StreamDecoder",
    "TokenFile",
    "Tokenizer",
    "load_corpus",
    "load_tokenizer",
]
__getattr__, __dir__ = on_first_use(__name__, {name: __name__ for name in __all__})
