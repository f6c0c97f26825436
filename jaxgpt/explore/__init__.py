"""A page that shows a model at work: one file that opens from disk, without a server or a network.

In: a model, its tokenizer and a text, and of a run its metrics.
Out: HTML with the data, the style and the scripts in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.explore.page import explore

__all__ = ["explore"]
__getattr__, __dir__ = on_first_use(__name__)
