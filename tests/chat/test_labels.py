"""Numbers stand for a model's labels where there is no doubt of it, and what is odd about labels is said."""

from jaxgpt.chat.labels import name_labels, note_odd_labels
from jaxgpt.chat.records import Text


def texts(*labels: str) -> list[Text]:
    return [Text("x", label, f"f:{number}") for number, label in enumerate(labels, start=1)]


def test_numbers_get_the_names_that_have_them():
    assert [one.label for one in name_labels(texts("1", "0", "1"), ("neg", "pos"))] == ["pos", "neg", "pos"]
    for labels, names in ((("0", "2"), ("a", "b")), (("0", "x"), ("a", "b")), (("0", "1"), ("1", "0")), (("0",), ())):
        assert name_labels(texts(*labels), names) == texts(*labels)


def test_labels_that_hardly_differ_and_those_that_are_not_trained_on_are_noted(capsys):
    note_odd_labels(texts("ham", "spam", "ham", "ham "), texts("Spam", "x"))
    assert capsys.readouterr().err.splitlines() == [
        "note: labels that differ by white space or case alone are taken for different ones: 'ham' (2), 'ham ' (1)",
        "note: labels that differ by white space or case alone are taken for different ones: 'spam' (1), 'Spam' (1)",
        "note: f:1: label 'Spam' stands only among the texts to validate on, so it is not learnt",
        "note: f:2: label 'x' stands only among the texts to validate on, so it is not learnt",
    ]
    note_odd_labels(texts("a", "b"), texts("a"))
    assert capsys.readouterr().err == ""
