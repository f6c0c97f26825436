"""Names of labels: which there are, what numbers stand for, and what is odd about them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from jaxgpt.chat.records import Text
from jaxgpt.notes import note

SHOWN = 3


def label_names(texts: Iterable[Text]) -> tuple[str, ...]:
    """Return the names of the labels in order: of numbers, if all are numbers."""
    names = {text.label for text in texts}
    return tuple(sorted(names, key=int if all(name.isdecimal() for name in names) else None))


def name_labels(texts: Sequence[Text], names: Sequence[str]) -> list[Text]:
    """Return texts whose labels are numbers of `names`, from 0, with these names; others as they are."""
    numbers = {str(number): name for number, name in enumerate(names)}
    used = {text.label for text in texts}
    if used & set(names) or not used <= numbers.keys():
        return list(texts)
    return [replace(text, label=numbers[text.label]) for text in texts]


def note_odd_labels(train: Sequence[Text], val: Sequence[Text]) -> None:
    """Note labels that differ by white space or case alone, and those that no text to train on has."""
    alike: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for text in (*train, *val):
        alike[" ".join(text.label.split()).casefold()][text.label] += 1
    for spellings in list(filter(lambda found: len(found) > 1, alike.values()))[:SHOWN]:
        shown = ", ".join(f"{label!r} ({count})" for label, count in spellings.most_common())
        note(f"labels that differ by white space or case alone are taken for different ones: {shown}")
    known = {text.label for text in train}
    unseen: dict[str, str] = {}
    for text in val:
        if text.label not in known:
            unseen.setdefault(text.label, text.where)
    for label, where in list(unseen.items())[:SHOWN]:
        note(f"{where}: label {label!r} stands only among the texts to validate on, so it is not learnt")
