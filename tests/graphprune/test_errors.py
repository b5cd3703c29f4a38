"""Messages quote names out of files, which must not rule the terminal or the page."""

from __future__ import annotations

from graphprune.errors import PlanError, first_line, typed_line


def test_control_characters_are_shown_and_long_words_are_cut() -> None:
    text = str(PlanError(f"No layer \x1b[2J\x07a\u2028b {'x' * 100_000}."))
    assert text.startswith("No layer \\x1b[2J\\x07a\\u2028b xxx") and text.endswith("x.") and len(text) < 300


def test_plain_messages_stay_as_they_are() -> None:
    text = "Kein Kanal \u00fcbrig in layer1.0.conv1; see /a/long/path/model.json. And what to do."
    assert str(PlanError(text)) == text


def test_messages_stay_one_line_also_after_a_graph_interpreter_has_appended_its_traceback() -> None:
    error = PlanError("conv1 is float32\nfloat32[4].")
    error.args = (f"{error.args[0]}\n\nWhile executing %conv1", *error.args[1:])
    assert str(error) == "conv1 is float32\\nfloat32[4]."


def test_what_another_library_says_goes_into_a_sentence() -> None:
    """Which ends where ours ends, and says something even where an assertion says nothing."""
    assert f"It failed: {first_line(RuntimeError('no such size.'))}." == "It failed: no such size."
    assert first_line(AssertionError()) == typed_line(AssertionError()) == "AssertionError"
    assert typed_line(ValueError("no such size.\nHere.")) == "ValueError: no such size"


def test_what_a_process_that_reads_data_says_is_the_error_there() -> None:
    told = "Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n    x()\n"
    error = OSError(f"{told}OSError: broken file 17.png\nmore")
    assert first_line(error) == typed_line(error) == "OSError: broken file 17.png"


def test_what_another_library_says_is_cut() -> None:
    """It may quote a whole file, in words that are short."""
    assert first_line(ValueError("short\nand more")) == "short"
    long = first_line(ValueError("a b " * 1000))
    assert len(long) == 500 and long.endswith("...")
