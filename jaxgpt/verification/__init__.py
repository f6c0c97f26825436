"""The verification chain: is this the model that PyTorch has, in what it says and in what it learns?

In: a folder of Hugging Face's, and what was read of it. Out: a list of checks, each with what was measured and its bar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.verification.learning import verify_training
    from jaxgpt.verification.outputs import Check, table, verify, write_report

__all__ = ["Check", "table", "verify", "verify_training", "write_report"]
__getattr__, __dir__ = on_first_use(__name__)
