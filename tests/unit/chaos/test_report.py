"""The report of a soak: what it says, as text and as JSON."""

from __future__ import annotations

from collections import Counter

from deltafan.chaos.report import SHOWN, Report, Violation
from deltafan.chaos.soak import Progress, SoakPlan
from deltafan.cli.chaos import told
from deltafan.wire import dumps


def _report(*violations: Violation) -> Report:
    plan = SoakPlan(10, 42)
    return Report(
        plan.seed,
        plan.minutes,
        plan.setup,
        plan.command,
        seconds=615.2,
        enqueued=1800,
        states=Counter(done=1700, failed=100),
        failures=Counter(quota=60, worker_lost=40),
        followers=Counter(sse=3000),
        faults=Counter({("worker", "kill"): 40, ("Redis", "crash"): 12}),
        takeover_seconds=[2.1, 3.4, 2.2],
        violations=list(violations),
    )


LOST = Violation("0-job (paced)", "sse 1", "1-3 follows 1-1", ("0.2 s before: worker 1: SIGKILL, started again",))


def test_a_report_without_violations_says_so_and_counts() -> None:
    text = "\n".join(_report().lines())
    assert "deltafan chaos: 10 min 15 s, seed 42" in text
    assert "No violations" in text
    assert "1,800 enqueued: 1,700 done, 100 failed" in text
    assert "60 quota, 40 worker_lost" in text
    assert "2.2 s after a worker was struck (median), 3.4 s at the most" in text
    assert "40  worker           SIGKILL, started again" in text
    assert "The same again: deltafan chaos --minutes 10 --seed 42" in text


def test_a_violation_names_the_job_the_follower_the_rule_and_the_fault_before() -> None:
    text = "\n".join(_report(LOST).lines())
    assert "1 VIOLATION: " in text
    assert "1. 0-job (paced), sse 1: 1-3 follows 1-1\n       0.2 s before: worker 1: SIGKILL" in text


def test_of_very_many_violations_the_first_are_shown_and_json_has_all() -> None:
    report = _report(*[LOST] * (SHOWN + 5))
    assert report.lines()[-3] == "     and 5 more: --json has them all"
    assert len(report.to_dict()["violations"]) == SHOWN + 5
    assert dumps(report.to_dict()).startswith(b'{"ok":false,"seed":42,')


def test_an_interrupted_soak_says_what_it_did_not_judge() -> None:
    report = _report()
    report.interrupted, report.unjudged = True, 3
    assert "Interrupted: 3 jobs were under way, and are not judged." in report.lines()
    assert "nothing was left behind" not in "\n".join(report.lines())


def test_what_repeats_a_soak_holds_every_option_that_was_not_left_out() -> None:
    assert SoakPlan(0.5, 7).command == "deltafan chaos --minutes 0.5 --seed 7"
    plan = SoakPlan(2, 7, workers=4, relays=1, rate=2.5, server="cluster")
    assert plan.command == "deltafan chaos --minutes 2 --seed 7 --workers 4 --relays 1 --rate 2.5 --redis cluster"


def test_a_soak_that_judged_nothing_proves_nothing_and_says_so() -> None:
    text = "\n".join(Report(1, 1.0, "a setup", "a command", interrupted=True).lines())
    assert "Nothing was judged: no job has come to its end." in text
    assert "No violations" not in text
    assert "followers  none" in text


def test_faults_that_could_not_be_made_are_told_when_there_were_any() -> None:
    report = _report()
    assert "skipped" not in "\n".join(report.lines())
    report.faults_skipped = 3
    assert "3  skipped          what they were to strike was down, or under another fault" in "\n".join(report.lines())


def test_the_progress_begins_with_the_violations_and_fits_a_terminal_of_80_columns() -> None:
    for phase in ("breaking things", "waiting for jobs"):
        line = told(Progress(phase, 615.2, _report(LOST, LOST), 80))
        assert line.startswith("2 violations; 615 s, ")
        assert len(line) < 78  # beside what turns
