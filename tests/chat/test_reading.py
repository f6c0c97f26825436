"""Users' files are read as they mean it, or refused by one line that begins with file and line."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jaxgpt.chat.reading import read_conversations, read_labelled, read_pairs, read_prompts
from jaxgpt.chat.records import Message, Preference, Text
from jaxgpt.data import record_files
from jaxgpt.errors import UsageError

USER, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}
OTHER = {"role": "assistant", "content": "Not I."}
SYSTEM = {"role": "system", "content": "Be brief."}
user, answer, other, system = (Message(**message) for message in (USER, ANSWER, OTHER, SYSTEM))


def write(path: Path, *records: object, end: str = "\n") -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_bytes(end.join([*lines, ""]).encode("utf-8", "surrogateescape"))
    return path


def test_every_format_gives_the_same_labelled_texts(tmp_path: Path):
    rows = [{"text": "good é", "label": "ham"}, {"text": 'a "b",\nc', "label": 1, "id": 7}]
    jsonl = write(tmp_path / "a.jsonl", rows[0], "", "  ", rows[1])
    listed = write(tmp_path / "a.json", json.dumps(rows, indent=2))
    table = write(tmp_path / "a.csv", "text,label,id", "good é,ham,", "", '"a ""b"",\nc",1,7')
    wheres = [f"{jsonl}:1", f"{jsonl}:4", f"{listed}: entry 1", f"{listed}: entry 2", f"{table}:2", f"{table}:4"]
    read = [text for path in (jsonl, listed, table) for text in read_labelled(path)]
    assert read == [
        Text(*pair, where) for pair, where in zip([("good é", "ham"), ('a "b",\nc', "1")] * 3, wheres, strict=True)
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
def test_byte_order_marks_and_carriage_returns_are_no_text(tmp_path: Path, suffix: str):
    record = {"text": "x", "label": "y"}
    lines = {".jsonl": [record], ".csv": ["text,label", "x,y"], ".json": ["[", json.dumps(record), "]"]}[suffix]
    path = write(tmp_path / f"a{suffix}", *lines, end="\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [(text.text, text.label) for text in read_labelled(path)] == [("x", "y")]


def test_lone_surrogates_are_counted(tmp_path: Path, capsys):
    messages = [{"role": "user", "content": "\ud800 and \udc00"}, {"role": "assistant", "content": "\U0001f600"}]
    path = write(tmp_path / "a.jsonl", {"messages": messages}, {"messages": [USER, {**ANSWER, "content": "\udfff"}]})
    assert len(read_conversations(path)) == 2
    assert capsys.readouterr().err == f"note: {path}: 3 lone surrogates, which are no characters, are read as U+FFFD\n"
    read_conversations(write(tmp_path / "b.jsonl", {"messages": [USER, ANSWER]}))
    assert capsys.readouterr().err == ""


def test_conversations_are_openais_or_alpacas(tmp_path: Path):
    path = write(
        tmp_path / "a.jsonl",
        {"messages": [SYSTEM, USER, ANSWER, USER | {"name": None}]},
        {"instruction": "Add.", "input": "1 2", "output": "3", "text": "…"},
        {"instruction": "Greet.", "input": "", "output": "Hello."},
        {"instruction": "Greet.", "output": "Hello."},
    )
    read = read_conversations(path)
    assert [conversation.where for conversation in read] == [f"{path}:{line}" for line in (1, 2, 3, 4)]
    greeting = (Message("user", "Greet."), Message("assistant", "Hello."))
    assert [conversation.messages for conversation in read] == [
        (system, user, answer, user),
        (Message("user", "Add.\n\n1 2"), Message("assistant", "3")),
        greeting,
        greeting,
    ]


def test_pairs_are_texts_or_messages(tmp_path: Path):
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "p", "chosen": "c", "rejected": "r", "margin": 0.5},
        {"prompt": [SYSTEM, USER], "chosen": [ANSWER], "rejected": [OTHER], "margin": None},
        {"prompt": "Who?", "chosen": [ANSWER], "rejected": "Not I."},
        {"chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER, OTHER, USER, ANSWER], "margin": -2},
    )
    assert read_pairs(path) == [
        Preference("p", "c", "r", 0.5, f"{path}:1"),
        Preference((system, user), (answer,), (other,), 0.0, f"{path}:2"),
        Preference((user,), (answer,), (other,), 0.0, f"{path}:3"),
        Preference((system, user), (answer,), (other, user, answer), -2.0, f"{path}:4"),
    ]


def test_prompts_are_texts_or_messages_or_lines(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", {"prompt": "p"}, {"prompt": [USER]}, {"messages": [SYSTEM, USER, ANSWER, USER]})
    assert [prompt.prompt for prompt in read_prompts(path)] == ["p", (user,), (system, user, answer, user)]
    path = write(tmp_path / "a.txt", "one", "", " two")
    assert [(prompt.prompt, prompt.where) for prompt in read_prompts(path)] == [
        ("one", f"{path}:1"),
        (" two", f"{path}:3"),
    ]


def chat(*messages: object) -> dict[str, object]:
    return {"messages": list(messages)}


def pair(**changes: object) -> dict[str, object]:
    return {"prompt": "p", "chosen": "c", "rejected": "r"} | changes


def transcripts(chosen: str, rejected: str) -> dict[str, object]:
    """As HH-RLHF has them."""
    shared = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Who?\n\nAssistant:"
    return {"chosen": shared + chosen, "rejected": shared + rejected}


BROKEN: list[tuple[Callable[[Path], Any], object, str]] = [
    (read_labelled, "{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
    (read_labelled, "[" * 100_000, "not JSON that can be read"),
    (read_labelled, '{"text": "a", "label": ' + "1" * 5000 + "}", "not JSON that can be read"),
    (read_labelled, "3", "must be an object, not a number"),
    (read_labelled, "null", "must be an object, not null"),
    (read_labelled, "\udcff", "not UTF-8 at byte 0 of the line: invalid start byte"),
    (read_labelled, {}, "no field 'text'; it has no fields"),
    (read_labelled, {"text": "a", "lable": "b"}, "no field 'label'; its fields are 'text', 'lable'"),
    (read_labelled, {"text": 5, "label": "b"}, "'text' must be a text, not 5"),
    (read_labelled, {"text": " \n", "label": "b"}, "'text' is empty"),
    (read_labelled, {"text": "a", "label": ""}, "'label' is empty"),
    (read_labelled, {"text": "a", "label": True}, "'label' must be a text, not True"),
    (read_labelled, {"text": "a", "label": 0.5}, "'label' must be a text, not 0.5"),
    (read_conversations, {"dialogue": []}, "or 'instruction' and 'output' in it; its fields are 'dialogue'"),
    (read_conversations, {"conversations": []}, "'conversations' must be a list of messages, not []"),
    (read_conversations, {"conversations": [{"from": "tool", "value": "x"}]}, "role is 'tool'; valid are system, user"),
    (read_conversations, {"prompt": "p", "completion": ""}, "'completion' is empty"),
    (read_conversations, chat(USER, ANSWER | {"tool_calls": [{}]}), "message 2 of 'messages' has 'tool_calls', which"),
    (read_conversations, {"instruction": "a"}, "no field 'output'"),
    (read_conversations, {"instruction": "a", "input": 3, "output": "b"}, "'input' must be a text, not 3"),
    (read_conversations, {"messages": "hello"}, "'messages' must be a list of messages, not 'hello'"),
    (read_conversations, {"messages": None}, "'messages' must be a list of messages, not None"),
    (read_conversations, chat(), "'messages' must be a list of messages, not []"),
    (read_conversations, chat(USER), "no turn of the assistant to learn from"),
    (read_conversations, chat(USER, "hello"), "message 2 of 'messages' must be an object with 'role' and 'content'"),
    (read_conversations, chat(USER, ANSWER | {"role": "bot"}), "message 2 of 'messages': role is 'bot'; valid are sys"),
    (read_conversations, chat({"content": "x"}), "message 1 of 'messages': role is None; valid are system, user, assi"),
    (read_conversations, chat({"role": ["user"], "content": "x"}), "message 1 of 'messages': role is ['user']; valid"),
    (read_conversations, chat(USER, SYSTEM, ANSWER), "message 2 of 'messages': role system; it may only come first"),
    (read_conversations, chat(USER, ANSWER | {"content": ""}), "message 2 of 'messages': content must be a text that"),
    (read_conversations, chat(USER, ANSWER | {"content": [{"type": "text"}]}), "content must be a text that is not"),
    (read_conversations, chat(USER, ANSWER | {"weight": 0}), "message 2 of 'messages' has 'weight', which is not supp"),
    (read_conversations, chat(USER, ANSWER) | {"tools": [{}]}, "tools are not supported"),
    (read_pairs, pair(chosen="r"), "chosen and rejected are equal"),
    (read_pairs, {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "chosen and rejected are equal"),
    (read_pairs, {"chosen": "c", "rejected": "r"}, "no field 'prompt', and no "),
    (
        read_pairs,
        {"chosen": "c", "rejected": [OTHER]},
        "no field 'prompt', and one answer is a text, the other messages",
    ),
    (read_pairs, transcripts("", "No"), "'chosen' ends without an answer"),
    (read_pairs, {"prompt": "Other?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "'chosen' must begin and"),
    (read_pairs, {"prompt": "p", "chosen": "c"}, "no field 'rejected'; its fields are 'prompt', 'chosen'"),
    (read_pairs, pair(rejected=""), "'rejected' is empty"),
    (read_pairs, pair(prompt=[USER, ANSWER]), "the prompt must end with a message of the user's"),
    (read_pairs, {"chosen": [ANSWER], "rejected": [OTHER]}, "the prompt must end with a message of the user's"),
    (read_pairs, pair(chosen=[USER, ANSWER]), "'chosen' must begin and end with a message of the assistant's"),
    (read_pairs, pair(rejected=[ANSWER, USER]), "'rejected' must begin and end with a message of the assistant's"),
    (read_pairs, pair(margin="1"), "'margin' must be a finite number, not '1'"),
    (read_pairs, pair(margin=True), "'margin' must be a finite number, not True"),
    (read_pairs, pair(margin=float("nan")), "'margin' must be a finite number, not nan"),
    (read_pairs, pair(margin=float("inf")), "'margin' must be a finite number, not inf"),
    (read_pairs, pair(margin=10**400), "'margin' must be a finite number, not 1000"),
    (read_prompts, {"text": "x"}, "no field 'prompt'; its fields are 'text'"),
    (read_prompts, {"prompt": 3}, "'prompt' must be a text, not 3"),
    (read_prompts, chat(USER, ANSWER), "the prompt must end with a message of the user's"),
]
GOOD = {read_labelled: {"text": "a", "label": "b"}, read_conversations: chat(USER, ANSWER), read_pairs: pair()}


@pytest.mark.parametrize(("read", "record", "message"), BROKEN)
def test_errors_begin_with_file_and_line(tmp_path: Path, read: Callable[[Path], Any], record: object, message: str):
    path = write(tmp_path / "a b.jsonl", GOOD.get(read, {"prompt": "x"}), "", record)
    with pytest.raises(UsageError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:3: ") and message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.json", b'{"data": []}', "{path}: must be a list of objects, not an object"),
        ("a.json", b'[{"text": "a", "label": "b"}, 3]', "{path}: entry 2: must be an object, not a number"),
        ("a.json", b'[\n{"a": \n', "{path}: not JSON: Expecting value at line 3 column 1"),
        ("a.json", b"[\n\xff]", "{path}:2: not UTF-8 at byte 2 of the file: invalid start byte"),
        ("a.json", b"[]", "{path}: no records in it"),
        ("a.jsonl", b"", "{path}: no records in it"),
        ("a.jsonl", b"\n \n", "{path}: no records in it"),
        ("a.csv", b"text,label\n", "{path}: no records in it"),
        ("a.csv", b'text,label\na,b\n\n"c\nd",e,f\n', "{path}:4: 3 fields, but the header has 2: text, label"),
        ("a.csv", b'text,label\na,b\n"c\n', "{path}:3: not CSV: unexpected end of data"),
        ("a.csv", b"text,text\n", "{path}:1: two columns of one name in the header text, text"),
        ("a.csv", b"text;label\na;b\n", "{path}:2: no field 'text'; its fields are 'text;label'; --text_column"),
        ("a.csv", b"text,label\na,b\n\xff,b\n", "{path}:3: not UTF-8 at byte 0 of the line: invalid start byte"),
        ("a.csv", b"text,label\n" + b"a" * 200_000 + b",b\n", "{path}:2: not CSV: field larger than field limit"),
        ("a.txt", b"", "{path}: must be a file that ends in .jsonl, .json, .parquet, .csv, .tsv"),
    ],
)
def test_files_that_are_no_records_are_named(tmp_path: Path, name: str, contents: bytes, message: str):
    path = tmp_path / name
    path.write_bytes(contents)
    with pytest.raises(UsageError) as caught:
        read_labelled(path)
    assert message.format(path=path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_opened_are_named(tmp_path: Path):
    for path, why in ((tmp_path / "none.jsonl", "No such file"), (tmp_path / "folder.json", "Is a directory")):
        (tmp_path / "folder.json").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=f"{path}: cannot be read: {why}"):
            read_prompts(path)


def test_what_is_read_at_once_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(record_files, "_MAX_LINE", 100)
    monkeypatch.setattr(record_files, "_MAX_JSON", 100)
    path = write(tmp_path / "a.jsonl", {"prompt": "x"}, {"prompt": "x" * 100})
    with pytest.raises(UsageError, match=f"{path}:2: longer than 100 bytes, the limit for one line"):
        read_prompts(path)
    with pytest.raises(UsageError, match="a.json: too large for one list .limit 100 bytes.; make it a .jsonl file"):
        read_prompts(write(tmp_path / "a.json", "[".ljust(129)))


def test_conversations_of_other_tools_are_read(tmp_path: Path, capsys):
    named = USER | {"name": "Ann", "id": 3}
    path = write(
        tmp_path / "a.jsonl",
        {"conversations": [{"from": "system", "value": " "}, {"from": "human", "value": "Who?"}, ANSWER]},
        {"prompt": "Who?", "completion": "I."},
        {"prompt": [SYSTEM | {"content": ""}, named], "completion": [ANSWER]},
        {"messages": [{"role": "system", "content": None}, named, ANSWER]},
    )
    assert [conversation.messages for conversation in read_conversations(path)] == [(user, answer)] * 4
    note = f"note: {path}: keys of messages that are left alone: 'name' (2), 'id' (2)\n"
    assert capsys.readouterr().err == note


def test_a_system_message_may_stand_in_a_field_of_its_own(tmp_path: Path):
    beside = {"system": SYSTEM["content"]}
    conversations = write(
        tmp_path / "a.jsonl",
        beside | {"messages": [USER, ANSWER]},
        beside | {"messages": [SYSTEM, USER, ANSWER]},
        beside | {"conversations": [{"from": "human", "value": "Who?"}, ANSWER]},
        beside | {"prompt": "Who?", "completion": "I."},
        beside | {"instruction": "Who?", "output": "I."},
    )
    assert [one.messages for one in read_conversations(conversations)] == [(system, user, answer)] * 5
    pairs = write(tmp_path / "b.jsonl", beside | {"prompt": [USER], "chosen": "I.", "rejected": [OTHER]})
    assert [one.prompt for one in read_pairs(pairs)] == [(system, user)]
    prompts = write(tmp_path / "c.jsonl", beside | {"messages": [USER]}, {"system": None, "prompt": "Who?"})
    assert [one.prompt for one in read_prompts(prompts)] == [(system, user), "Who?"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"system": 7, "messages": [USER, ANSWER]}, "'system' must be a text, not 7"),
        ({"system": "Be.", "messages": [SYSTEM, USER, ANSWER]}, "'system' is another text than the first message"),
        ({"instruction": "Who?", "output": "I.", "history": [["a", "b"]]}, "'history' is not read"),
    ],
)
def test_what_of_a_conversation_stands_beside_it_is_not_lost(tmp_path: Path, record, message: str):
    with pytest.raises(UsageError, match=f"a.jsonl:1: {message}"):
        read_conversations(write(tmp_path / "a.jsonl", record))


def test_pairs_of_the_hub_are_read_as_they_are(tmp_path: Path):
    path = write(
        tmp_path / "a.jsonl",
        transcripts(" I.", " Not I.\n\nHuman: So?\n\nAssistant: No"),
        {"prompt": "Who?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER, OTHER]},
    )
    shared = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Who?\n\nAssistant:"
    assert [(one.prompt, one.chosen, one.rejected) for one in read_pairs(path)] == [
        (shared, " I.", " Not I.\n\nHuman: So?\n\nAssistant: No"),
        ((user,), (answer,), (other,)),
        ((system, user), (answer,), (other,)),
    ]


@pytest.mark.parametrize(("read", "record", "message"), [case for case in BROKEN if isinstance(case[1], dict)])
def test_bad_records_are_left_out_and_the_first_are_named(
    tmp_path: Path, capsys, read: Callable[..., list[Any]], record: object, message: str
):
    good = GOOD.get(read, {"prompt": "x"})
    path = write(tmp_path / "a.jsonl", good, *[record, good] * 4)
    assert len(read(path, bad_records="drop")) == 5
    said = capsys.readouterr().err
    assert said.startswith(f"note: {path}: 4 of 9 records can't be used and are left out: 2: ") and "; 6: " in said
    assert "8: " not in said and said.count("\n") == 1
    with pytest.raises(UsageError) as caught:
        read(write(tmp_path / "b.jsonl", good, record, record), bad_records="drop")
    assert message in str(caught.value) and str(caught.value).endswith("; 2 of 3 records can't be used")


def test_a_line_that_is_no_json_is_never_left_out(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", *[{"prompt": "x"}] * 9, "{")
    with pytest.raises(UsageError, match=f"{path}:10: not JSON"):
        read_prompts(path, bad_records="drop")


def test_json_lines_may_be_compressed_or_have_another_name(tmp_path: Path):
    lines = write(tmp_path / "a.jsonl", {"prompt": "one {}"}, "", {"prompt": "two"})
    named, packed = [tmp_path / "a.json", tmp_path / "a.ndjson"], tmp_path / "a.jsonl.gz"
    for path in named:
        path.write_bytes(lines.read_bytes())
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    for path in (*named, packed):
        assert [(one.prompt, one.where) for one in read_prompts(path)] == [
            ("one {}", f"{path}:1"),
            ("two", f"{path}:3"),
        ]
    for broken in (packed.read_bytes()[:-12], b"no gzip"):
        packed.write_bytes(broken)
        with pytest.raises(UsageError, match=f"{packed}: not a gzip file, or damaged"):
            read_prompts(packed)


def test_columns_have_other_names_by_request_or_where_there_is_one_that_is_usual(tmp_path: Path, capsys):
    path = write(tmp_path / "a.tsv", "sentence\tid\tsentiment", "good\t1\tpos", "bad\t2\tneg")
    assert [(one.text, one.label) for one in read_labelled(path)] == [("good", "pos"), ("bad", "neg")]
    assert capsys.readouterr().err.splitlines() == [
        f"note: {path}: there is no 'text', so 'sentence' is read in its place (--text_column)",
        f"note: {path}: there is no 'label', so 'sentiment' is read in its place (--label_column)",
    ]
    assert [one.label for one in read_labelled(path, text_column="sentence", label_column="id")] == ["1", "2"]
    assert capsys.readouterr().err == ""
    two = write(tmp_path / "b.csv", "sentence,review,label", "a,b,c")
    with pytest.raises(UsageError, match="b.csv:2: no field 'text'; its fields are .*; --text_column says which it is"):
        read_labelled(two)
    with pytest.raises(UsageError, match="a.tsv:2: no field 'body'; .*; --text_column says which it is"):
        read_labelled(path, text_column="body")


class Parquet:
    """What is asked of `pyarrow.parquet`, of which a file holds JSON lines here."""

    def __init__(self, path: Path) -> None:
        if not (text := path.read_text()).startswith("{"):
            raise ValueError("Parquet magic bytes not found in footer.\nOr so.")
        self.rows = [json.loads(line) for line in text.splitlines()]

    def iter_batches(self) -> list[Any]:
        return [SimpleNamespace(to_pylist=lambda rows=self.rows[i : i + 2]: rows) for i in range(0, len(self.rows), 2)]


def test_parquet_is_read_wherever_json_lines_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", SimpleNamespace(ParquetFile=Parquet))
    path = write(tmp_path / "a.parquet", chat(USER, ANSWER), {"prompt": "p", "messages": None, "completion": "c"})
    assert [(one.messages[-1].content, one.where) for one in read_conversations(path)] == [
        ("I.", f"{path}: row 1"),
        ("c", f"{path}: row 2"),
    ]
    rows = [{"text": "x", "label": i} for i in range(3)]
    assert [one.label for one in read_labelled(write(path, *rows))] == ["0", "1", "2"]
    assert read_pairs(write(path, pair()))[0].chosen == "c" and read_prompts(write(path, pair()))[0].prompt == "p"
    with pytest.raises(UsageError, match=f"{path}: not a parquet file, or damaged: Parquet magic bytes .* Or so.$"):
        read_prompts(write(path, "PAR"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match="a.parquet: parquet files need another package: pip install pyarrow"):
        read_prompts(write(tmp_path / "a.parquet", "x"))


def test_parquet_as_pyarrow_writes_it(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [chat(SYSTEM, USER, ANSWER), chat(USER, OTHER)]
    parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [one.messages for one in read_conversations(tmp_path / "a.parquet")] == [
        (system, user, answer),
        (user, other),
    ]
