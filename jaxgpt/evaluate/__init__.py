"""A model and data come in; the figures by which models are compared go out.

Texts: loss, perplexity, bits per byte. Examples: accuracies. `python -m jaxgpt.evaluate` is the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.evaluate.examples import (
        AnswerScore,
        LabelScore,
        PairScore,
        answer_log_probs,
        measure_conversations,
        measure_labels,
        measure_pairs,
        measure_preferences,
    )
    from jaxgpt.evaluate.opening import open_scorer
    from jaxgpt.evaluate.scoring import Row, Scored, Scorer, score_tokens, windows
    from jaxgpt.evaluate.tasks import ChoiceScore, Example, WordScore, measure_task, read_task
    from jaxgpt.evaluate.texts import (
        Document,
        TextScore,
        measure_batches,
        measure_texts,
        measure_windows,
        read_documents,
    )

__all__ = [
    "AnswerScore",
    "ChoiceScore",
    "Document",
    "Example",
    "LabelScore",
    "PairScore",
    "Row",
    "Scored",
    "Scorer",
    "TextScore",
    "WordScore",
    "answer_log_probs",
    "measure_batches",
    "measure_conversations",
    "measure_labels",
    "measure_pairs",
    "measure_preferences",
    "measure_task",
    "measure_texts",
    "measure_windows",
    "open_scorer",
    "read_documents",
    "read_task",
    "score_tokens",
    "windows",
]
__getattr__, __dir__ = on_first_use(__name__)
