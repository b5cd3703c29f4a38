"""A network that hangs or crashes costs the process that checks it: the failure says so, and the run goes on in order."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

import pytest

from tests.fuzz import attempt as module
from tests.fuzz.attempt import Attempt, attempts, passes
from tests.fuzz.check import Outcome
from tests.fuzz.generate import generate
from tests.fuzz.spec import Spec

CRASHES, HANGS, FAILS = 2, 3, 4
WRONG = "verified: AssertionError: x"


def planted(seed: int) -> Attempt:
    """An attempt that checks nothing, in which a network crashes, one hangs, and one fails."""
    crash(seed == CRASHES)
    if seed == HANGS:
        time.sleep(600)
    return Outcome(seed, WRONG if seed == FAILS else "", counts=Counter({str(os.getpid()): 1})), generate(seed)


def crash(now: bool) -> None:
    """Die, as torch would in a kernel that reads outside of its memory."""
    if now:
        os.kill(os.getpid(), signal.SIGSEGV)


def shrunk(spec: Spec, outcome: Outcome) -> Spec:
    """A shrinker that finds a smaller network."""
    return spec.model_copy(update={"policy": {}, "why": outcome.failure})


def shrinking(spec: Spec, outcome: Outcome) -> Spec:
    """A shrinker in which a smaller network crashes."""
    crash(True)
    return spec


def attempted(monkeypatch: pytest.MonkeyPatch, seeds: list[int], jobs: int = 1) -> list[Attempt]:
    monkeypatch.setattr(module, "attempt", planted)
    monkeypatch.setattr(module, "shrink", shrunk)
    return list(attempts(seeds, jobs, time.monotonic() + 600))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_network_that_crashes_is_a_failure_and_the_run_goes_on_in_order(monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    found = attempted(monkeypatch, [1, CRASHES, FAILS, 5], jobs)
    assert [(outcome.seed, outcome.failure) for outcome, _ in found] == [(1, ""), (2, "crashed: SIGSEGV"), (4, WRONG), (5, "")]
    assert found[1][1] == generate(CRASHES).model_copy(update={"why": "crashed: SIGSEGV"})
    assert found[2][1] == generate(FAILS).model_copy(update={"policy": {}, "why": WRONG})
    assert found[1][0].counts == {}, "nothing was proved of it"


def test_a_network_that_hangs_is_a_failure_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 1.0)
    (before, _), (hung, spec), (after, _) = attempted(monkeypatch, [1, HANGS, 5])
    assert (before.failure, hung.failure, after.failure) == ("", "hung: no answer in 1 seconds", "")
    assert spec == generate(HANGS).model_copy(update={"why": hung.failure})
    (process,), (other,) = before.counts, after.counts
    assert process != other and not os.path.exists(f"/proc/{process}"), "what hangs is ended"


def test_a_crash_while_it_is_shrunk_leaves_the_failure_and_the_whole_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "attempt", planted)
    monkeypatch.setattr(module, "shrink", shrinking)
    (outcome, spec), (after, _) = attempts([FAILS, 5], 1, time.monotonic() + 600)
    assert (outcome.failure, after.failure) == (WRONG, "") and spec == generate(FAILS).model_copy(update={"why": WRONG})


def test_processes_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEWED", 2)
    first, second, third = (set(outcome.counts) for outcome, _ in attempted(monkeypatch, [5, 6, 7]))
    assert first == second != third


def judge(spec: Spec) -> bool:
    """A check in which one network crashes, one fails and the others pass."""
    crash(spec.seed == CRASHES)
    return spec.seed != FAILS


def test_a_network_that_is_tried_again_passes_fails_or_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_passes", judge)
    assert [passes(generate(seed)) for seed in (1, CRASHES, FAILS)] == [True, False, False]


def test_after_the_deadline_what_has_begun_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "attempt", planted)
    assert [outcome.seed for outcome, _ in attempts(range(5, 100), 2, time.monotonic())] == [5, 6]
