"""What is told of a round."""

from __future__ import annotations

import dataclasses
import json

from pfl_mobile.simulation.records import RoundRecord, all_failed, summary
from pfl_mobile.simulation.worker import Record

RECORDS = [
    Record(3, examples=10, steps=2, reports={"loss": 1.0, "top1": 0.5}),
    Record(1, failure="NonFiniteError: a loss is NaN"),
    Record(8, examples=30, steps=4, reports={"loss": 3.0}),
    Record(2, failure="DataError: no rows"),
    Record(5, failure="NonFiniteError: a value is NaN"),
]


def record(records=RECORDS):
    return summary(6, records, dropped=2, bytes_down=100, bytes_up=50, seconds=0.5, epsilon=1.5)


def test_failed_devices_are_named_and_count_nothing():
    found = record()
    assert (found.clients, found.dropped, found.examples, found.steps) == (2, 2, 40, 6)
    assert found.failures == {"NonFiniteError": 2, "DataError": 1}
    assert [client for client, _ in found.failed] == [1, 2, 5]
    assert found.loss == 2.0
    assert found.reports == {"top1": 0.5}, "the mean of those that report it"


def test_nothing_trained_has_no_loss():
    found = record(RECORDS[1:2])
    assert (found.clients, found.loss, found.reports) == (0, None, {})


def test_a_record_is_a_line_of_the_history():
    found = record()
    assert RoundRecord.load(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_a_run_that_nobody_can_be_merged_in_says_why_and_what_helps():
    found = all_failed(2, 4, [(1, "NonFiniteError: a loss is NaN"), (1, "NonFiniteError: again")])
    assert "all 1 devices of rounds 2 to 4 failed" in found.message
    assert "learning rate" in found.mend
    other = all_failed(2, 2, [(1, "DataError: no rows")])
    assert "of round 2 failed" in other.message
    assert "examples of these users" in other.mend
