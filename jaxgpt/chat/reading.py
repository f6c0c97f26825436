"""Users' own files of examples → records, whatever of the usual formats they are in; see `formats`.

Fields beyond those that are named here are left alone.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jaxgpt.chat import formats
from jaxgpt.chat.records import BadRecords, Conversation, Preference, Prompt, Text
from jaxgpt.data.record_files import read_records
from jaxgpt.errors import UsageError

LISTS = (".jsonl", ".json", ".parquet")
TABLES = (".csv", ".tsv")
SHOWN_BAD = 3
_Any = TypeVar("_Any")


def read_labelled(
    path: str | Path,
    *,
    text_column: str = formats.TEXT_COLUMN,
    label_column: str = formats.LABEL_COLUMN,
    bad_records: BadRecords = "error",
) -> list[Text]:
    """Read texts with labels from a table or list of records: .jsonl, .json, .parquet, .csv or .tsv.

    Args:
        path: the file; all formats but parquet may be compressed, as in .jsonl.gz.
        text_column: name of the field with the text. Where there is none of the default name, but one that is usual in
            its place, such as `sentence`, that is taken, and said.
        label_column: name of the field with the label, a text or a whole number; likewise.
        bad_records: what becomes of a record that can't be used: left out, counted and said, or an error.

    Raises:
        UsageError: naming file and line of what is broken, or of the first of the records that can't be used, where
            most can't. This holds for all that reads here.
    """
    parse = partial(formats.labelled, path=str(path), text_column=text_column, label_column=label_column)
    return _read(path, (*LISTS, *TABLES), parse, bad_records)


def read_conversations(path: str | Path, *, bad_records: BadRecords = "error") -> list[Conversation]:
    """Read conversations from a .jsonl, .json or .parquet file.

    A record is `{"messages": [{"role": …, "content": …}, …]}` as OpenAI has it, ShareGPT's `{"conversations":
    [{"from": "human", "value": …}, …]}`, TRL's `{"prompt": …, "completion": …}`, of texts or messages, or Alpaca's
    `{"instruction": …, "input": …, "output": …}`, whose input may be missing or empty. In any of them a field `system`
    is the system's message.
    """
    return _read(path, LISTS, formats.conversation, bad_records)


def read_pairs(path: str | Path, *, bad_records: BadRecords = "error") -> list[Preference]:
    """Read pairs of answers from a .jsonl, .json or .parquet file, in TRL's formats and those of well-known data.

    The fields are `prompt`, `chosen` and `rejected`, each a text or a list of messages, and optionally `margin`. Where
    only some are messages, a text is taken for the one message. Both answers may be whole conversations that repeat
    the prompt, as UltraFeedback's are, or stand without one; then the messages that they begin with alike are the
    prompt. Of two texts without a prompt, which are transcripts as HH-RLHF's, it goes up to the last "Assistant:" that
    they share.
    """
    return _read(path, LISTS, formats.pair, bad_records)


def read_prompts(path: str | Path, *, bad_records: BadRecords = "error") -> list[Prompt]:
    """Read prompts from a .jsonl, .json or .parquet file, or from a .txt file with one a line.

    The field is `prompt`, a text or a list of messages, or `messages`; messages end with the user's.
    """
    return _read(path, (*LISTS, ".txt"), formats.prompt, bad_records, column="prompt")


def _read(
    path: str | Path,
    suffixes: tuple[str, ...],
    parse: Callable[[dict[str, Any], str], _Any],
    bad_records: BadRecords,
    column: str = "",
) -> list[_Any]:
    """Return what `parse` makes of a file's records; whatever is read passes through here."""
    found, bad, ignored = [], [], Counter[str]()
    for where, record in read_records(path, suffixes, column):
        try:
            found.append(parse(record, where))
        except UsageError as error:
            if bad_records == "error":
                raise
            bad.append(str(error))
        else:
            ignored.update(formats.ignored(record))
    if len(bad) > len(found):
        raise UsageError(f"{bad[0]}; {len(bad)} of {len(bad) + len(found)} records can't be used")
    if bad:
        shown = "; ".join(error.removeprefix(f"{path}:").strip()[:100] for error in bad[:SHOWN_BAD])
        of = f"{len(bad)} of {len(bad) + len(found)} records can't be used and are left out"
        print(f"note: {path}: {of}: {shown}{'; …' if len(bad) > SHOWN_BAD else ''}", file=sys.stderr)
    if ignored:
        keys = ", ".join(f"{key!r} ({count})" for key, count in ignored.most_common(SHOWN_BAD))
        print(f"note: {path}: keys of messages that are left alone: {keys[:200]}", file=sys.stderr)
    return found
