"""Tries mutants on the tests, inside one run of pytest that has everything imported and every network of the zoo captured.

First each test runs once, and it is written down which lines of the rules it runs and which analyses it asks for. A mutant is then
tried in a fork, on the tests that run its line, the quickest first. A test that prunes whole networks runs only where the mutant
changes one of its analyses: where it changes none, the test cannot fail.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from _pytest.runner import runtestprotocol

from tests.mutants.mutate import Mutation, install
from tests.mutants.watch import Analysis, Lines, Recorder, lines_run


@dataclass(frozen=True)
class Stage:
    """Tests by where they are and a pattern of their names. direct: they ask the rules themselves, not only for analyses."""

    name: str
    path: str
    part: str
    direct: bool = False

    def has(self, item: pytest.Item) -> bool:
        """Whether a test belongs here."""
        return item.nodeid.startswith(self.path) and re.search(self.part, item.name) is not None


#: What must catch a wrong rule, the quickest first. No test that runs backwards: autograd does not outlive a fork.
STAGES: Final = (
    Stage("tests of rules", "tests/passes/analysis/rules", "", direct=True),
    Stage("tests of labels", "tests/graphprune/channels/test_labels.py", "", direct=True),
    Stage("zoo: groups", "tests/zoo", "groups_are"),
    Stage("zoo: plans", "tests/zoo", r"plans_are_exact\[.*-0\]"),
)
LIMIT: Final = 3.0  # CPU seconds of one test or analysis, and 20 times what it takes; what loops for ever is caught, too
EVERY: Final = 10  # one in so many tests of whole networks runs twice without a mutant
MEMORY: Final = 4 << 30  # bytes that a mutant may ask for


@dataclass
class Test:
    """A test of a stage: the lines of the rules that it runs, the analyses that it asks for, and seconds of the CPU."""

    item: pytest.Item
    stage: int
    lines: Lines
    analyses: list[Analysis]
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """stage: that caught a mutant, or "". ran: tests that run its line. changed: of these, tests with another analysis."""

    stage: str
    ran: int = 0
    changed: tuple[str, ...] = ()


class Trials:
    """A plugin of pytest that tries mutants in place of running the tests.

    chosen: the mutants. found: told each verdict as it is known. jobs: mutants at a time. deadline: of ``time.monotonic``, after
    which none is begun.
    """

    def __init__(self, chosen: Iterable[Mutation], found: Callable[[Mutation, Verdict], None], jobs: int, deadline: float) -> None:
        self.chosen, self.found, self.jobs, self.deadline = chosen, found, jobs, deadline

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run each test once, then try the mutants."""
        tests = prepared(session.items)
        gc.collect()
        gc.freeze()
        unfit = Fork(lambda: control(tests)).verdict()
        assert not unfit.stage, f"without a mutant, what is caught is {unfit.stage}"
        running: deque[tuple[Mutation, Fork]] = deque()
        for mutation in self.chosen:
            if time.monotonic() > self.deadline:
                break
            if len(running) == self.jobs:
                self._finish(*running.popleft())
            running.append((mutation, Fork(partial(attempt, mutation, tests))))
        for pair in running:
            self._finish(*pair)
        return True

    def _finish(self, mutation: Mutation, fork: Fork) -> None:
        self.found(mutation, fork.verdict())


def paths() -> list[str]:
    """What pytest has to collect."""
    return list(dict.fromkeys(stage.path for stage in STAGES))


def forget() -> None:
    """Analyses that the zoo remembers are made again."""
    from tests.zoo.test_zoo import subject

    subject.cache_clear()


def prepared(items: Iterable[pytest.Item]) -> list[Test]:
    """Every test of a stage that passes without a mutant, in the order in which it is to be tried."""
    recorder = Recorder()
    recorder.install()
    tests = []
    for item in items:
        stage = next((index for index, stage in enumerate(STAGES) if stage.has(item)), None)
        if stage is None:
            continue
        lines: Lines = set()
        recorder.found, recorder.failed = {}, set()
        forget()
        start = time.process_time()
        if STAGES[stage].direct:
            with lines_run(lines):
                passed = passes(item)
        else:
            passed = passes(item)
        assert passed is not False, f"{item.nodeid} fails without a mutant"
        analyses = sorted(recorder.found.values(), key=lambda analysis: analysis.seconds)
        lines |= recorder.failed | {line for analysis in analyses for line in analysis.lines}
        if passed and lines:
            tests.append(Test(item, stage, lines, analyses, time.process_time() - start))
    forget()
    return sorted(tests, key=lambda test: (test.stage, test.seconds))


def passes(item: pytest.Item) -> bool | None:
    """Whether a test passes; None when it is skipped."""
    reports = runtestprotocol(item, log=False)
    return None if any(report.skipped for report in reports) else not any(report.failed for report in reports)


def control(tests: list[Test]) -> Verdict:
    """The negative twin of all mutants: with no change, no analysis is another and no test fails when it runs again."""
    for number, test in enumerate(tests):
        if any(analysis.changed() for analysis in test.analyses):
            return Verdict(f"the analysis of {test.item.name}")
        if (STAGES[test.stage].direct or number % EVERY == 0) and not passes(test.item):
            return Verdict(test.item.name)
    return Verdict("")


def attempt(mutation: Mutation, tests: list[Test]) -> Verdict:
    """Whether a test catches a mutant, in a process that is given up afterwards."""
    install(mutation)
    lines = {(mutation.file, line) for line in range(mutation.lines[0], mutation.lines[1] + 1)}
    ran = [test for test in tests if test.lines & lines]
    known: dict[int, bool] = {}
    changed = []
    for test in ran:
        if not STAGES[test.stage].direct:
            if not any(_changed(analysis, known) for analysis in test.analyses if analysis.lines & lines):
                continue
            changed.append(test.item.name)
        with suppress(TimeoutError), limited(test.seconds):
            if passes(test.item):
                continue
        return Verdict(STAGES[test.stage].name)
    return Verdict("", len(ran), tuple(changed))


def _changed(analysis: Analysis, known: dict[int, bool]) -> bool:
    if id(analysis) not in known:
        with suppress(TimeoutError), limited(analysis.seconds):
            known[id(analysis)] = analysis.changed()
    return known.setdefault(id(analysis), True)


class limited:
    """Raises TimeoutError after LIMIT seconds of the CPU, or twenty times as many as this takes."""

    def __init__(self, seconds: float, least: float = LIMIT) -> None:
        self.seconds = max(least, 20 * seconds)

    def __enter__(self) -> None:
        signal.signal(signal.SIGPROF, self._raise)
        signal.setitimer(signal.ITIMER_PROF, self.seconds)

    def __exit__(self, *_: Any) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _raise(self, *_: Any) -> None:
        raise TimeoutError(f"this took {self.seconds:.0f} seconds")


class Fork:
    """A child that is asked something. It may use so much memory, and write nothing."""

    def __init__(self, ask: Callable[[], Verdict]) -> None:
        self._reader, writer = os.pipe()
        self._child = os.fork()
        if not self._child:
            _answer(ask, self._reader, writer)
        os.close(writer)

    def verdict(self) -> Verdict:
        """The answer, once it is there; the stage is "crash" where the child did not live to give one."""
        with os.fdopen(self._reader) as pipe:
            text = pipe.read()
        os.waitpid(self._child, 0)
        if not text:
            return Verdict("crash")
        stage, ran, changed = json.loads(text)
        return Verdict(stage, ran, tuple(changed))


def _answer(ask: Callable[[], Verdict], reader: int, writer: int) -> None:
    code = 1
    try:
        os.close(reader)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        verdict = ask()
        os.write(writer, json.dumps([verdict.stage, verdict.ran, verdict.changed[:20]]).encode())
        code = 0
    finally:
        os._exit(code)
