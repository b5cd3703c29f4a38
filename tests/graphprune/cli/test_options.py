"""Sets of options turn into what commands work with."""

from __future__ import annotations

import sys

import pytest

from graphprune.cli.options import Screen


@pytest.mark.parametrize("silent", [False, True])
def test_nothing_but_the_result_reaches_standard_output_of_any_process(silent: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the model prints while it is loaded, in the first process and in the silent ones beside it."""
    with Screen(as_json=True).output(silent=silent) as output:
        sys.stdout.write("a model's greeting")
        output.say("done")
    assert capsys.readouterr() == ("", "a model's greeting")


def test_a_silent_process_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(verbose=True).output(silent=True) as output:
        output.say("done")
    assert output.quiet and capsys.readouterr() == ("", "")
