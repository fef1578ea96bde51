"""Work of many threads is done together, each gets its own result."""

from __future__ import annotations

import threading

import pytest

from pfl_server.uploads.group_commit import Together


def test_what_waits_is_done_at_once_and_everyone_gets_its_own():
    batches: list[list[int]] = []
    go = threading.Event()

    def work(items):
        if not batches:
            go.wait(10)
        batches.append(list(items))
        return [ValueError(str(i)) if i % 5 == 0 else i * i for i in items]

    together = Together(work, most=8)
    results: dict[int, object] = {}

    def run(i):
        try:
            results[i] = together.do(i)
        except ValueError as error:
            results[i] = str(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    while len(together._waiting) < 19:
        pass
    go.set()
    for thread in threads:
        thread.join()
    assert results == {i: str(i) if i % 5 == 0 else i * i for i in range(20)}
    assert sorted(i for batch in batches for i in batch) == list(range(20))
    assert [len(batch) for batch in batches] == [1, 8, 8, 3]


def test_an_error_of_the_work_reaches_all_and_the_next_go_on():
    fail = [True]

    def work(items):
        if fail:
            raise OSError("the disk")
        return [None for _ in items]

    together = Together(work)
    with pytest.raises(OSError, match="the disk"):
        together.do(1)
    fail.clear()
    assert together.do(2) is None
