"""What waits to be sent: sent once, dropped with a reason, and never without what protects it."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest

from pfl_mobile.device import events
from pfl_mobile.device.client import Client
from pfl_mobile.device.outbox import Outbox, Summary
from pfl_mobile.device.privacy import PrivacyPolicy
from pfl_mobile.device.store import DeviceFolder, Pending
from pfl_mobile.errors import ServerProblem
from pfl_mobile.local.state import PersonalState
from pfl_mobile.protocol.bodies import Enrolled
from tests.device.conftest import ID, QUICK
from tests.device.fake_server import answer, problem

TASK = "e" * 32
OPEN = {"mechanism": "none", "clip_norm": None, "noise_multiplier": 0.0}
SUMS = {"loss": {"sum": 6.0, "weight": 3.0}}
EVALUATION = {"global": SUMS, "personalized": {"loss": {"sum": 3.0, "weight": 3.0}}, "adopted": True}


class Outside:
    """An outbox with what is around it: the requests that went out, what was told, what was taken back."""

    def __init__(self, folder: DeviceFolder, policy: PrivacyPolicy) -> None:
        self.folder, self.answers, self.requests, self.told = folder, {}, [], []
        self.taken_back, self.now = [], 0.0
        pipeline = SimpleNamespace(policy=policy, take_back=lambda *what: self.taken_back.append(what))
        client = Client("http://localhost", transport=httpx2.MockTransport(self.handle), backoff=QUICK)
        self.outbox = Outbox(
            folder,
            client,
            pipeline,
            Summary(),
            self.told.append,
            lambda: self.now,
        )

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append((request.method, request.url.path))
        good = answer({"status": "accepted", "task": TASK, "received": 6, "duplicate": False})
        if request.url.path.endswith("/evaluation"):
            good = answer({})
        status, headers, body = self.answers.get(request.url.path, good)
        return httpx2.Response(status, headers=headers, content=iter([body]))

    def wait(self, **changes: object) -> Pending:
        update = b"update"
        base = {
            "task": TASK,
            "round": 3,
            "url": f"/v1/tasks/{TASK}/update",
            "key": "key",
            "deadline": 10.0,
            "sha256": hashlib.sha256(update).hexdigest(),
            "bytes": len(update),
            "privacy": OPEN,
            "reports": (),
            "copies": ("c",),
        }
        pending = Pending(**(base | changes))
        self.folder.put(pending, update)
        return pending

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.told]


@pytest.fixture
def outside(tmp_path):
    with DeviceFolder(tmp_path / "device", ID) as folder:
        yield Outside(folder, PrivacyPolicy(require=False))


def test_an_update_is_sent_once_then_its_report_then_forgotten(outside):
    outside.wait(evaluation=EVALUATION)
    assert outside.outbox.holds(TASK)
    outside.outbox.flush()
    outside.outbox.flush()
    paths = [path for _, path in outside.requests]
    assert paths.count(f"/v1/tasks/{TASK}/evaluation") == 1
    assert paths[-1] == f"/v1/tasks/{TASK}/evaluation"
    assert outside.names() == ["Uploaded", "Reported"]
    reported = outside.told[1]
    assert (reported.shared, reported.personalized) == ({"loss": 2.0}, {"loss": 1.0})
    assert (outside.outbox.summary.rounds, outside.outbox.holds(TASK)) == (1, False)


def test_what_was_accepted_is_not_uploaded_again(outside):
    outside.wait(evaluation=EVALUATION, uploaded=True)
    outside.outbox.flush()
    assert [path for _, path in outside.requests] == [f"/v1/tasks/{TASK}/evaluation"]
    assert outside.outbox.summary.rounds == 0


@pytest.mark.parametrize("code", ["round-closed", "wrong-tensors"])
def test_an_update_that_is_over_or_refused_is_dropped_and_its_copies_are_taken_back(outside, code):
    outside.wait(instead_of=7, evaluation=EVALUATION)
    outside.answers[f"/v1/tasks/{TASK}/update"] = problem(409, code)
    outside.outbox.flush()
    assert outside.names() == ["Dropped"]
    assert (outside.told[0].what, code in outside.told[0].why) == ("update", True)
    assert outside.taken_back == [(("c",), 7)]
    assert (outside.outbox.summary.dropped, outside.outbox.holds(TASK)) == (1, False)


def test_another_problem_leaves_the_update_in_the_queue(outside):
    outside.wait()
    outside.answers[f"/v1/tasks/{TASK}/update"] = problem(403, "device-revoked")
    with pytest.raises(ServerProblem):
        outside.outbox.flush()
    assert outside.outbox.holds(TASK)
    assert (outside.told, outside.taken_back) == ([], [])


def test_what_has_expired_is_not_sent(outside):
    outside.wait()
    outside.now = 10.0
    outside.outbox.flush()
    assert (outside.requests, outside.names()) == ([], ["Dropped"])
    assert "expired" in outside.told[0].why


def test_of_an_accepted_update_nothing_is_taken_back_when_its_report_expires(outside):
    outside.wait(evaluation=EVALUATION, uploaded=True)
    outside.now = 11.0
    outside.outbox.flush()
    assert (outside.told[0].what, outside.taken_back) == ("evaluation", [])


def test_a_policy_that_became_stricter_holds_for_what_waits(outside):
    outside.wait()
    outside.outbox.pipeline.policy = PrivacyPolicy()
    outside.outbox.flush()
    assert (outside.requests, outside.names()) == ([], ["Dropped"])
    assert "nothing protects" in outside.told[0].why


def test_reports_that_may_not_be_sent_stay(outside):
    outside.wait(evaluation=EVALUATION)
    outside.outbox.pipeline.policy = PrivacyPolicy(require=False, report=False)
    outside.outbox.flush()
    assert outside.names() == ["Uploaded"]
    assert not outside.outbox.holds(TASK)


def test_a_killed_process_is_gone_on_from(outside):
    """The new personal state serves once its update is safe, unless somebody changed what serves meanwhile."""
    store = outside.folder.personal
    state = PersonalState({"head.bias": np.zeros(3, np.float32)})
    old = store.save(state)
    new = store.write(state)
    outside.wait(adopts=new, instead_of=old)
    outside.wait(task="broken")
    outside.folder.update_path("broken").write_bytes(b"other")
    outside.outbox.go_on()
    assert store.current == new
    assert outside.told == [events.Dropped("broken", "update", "its file in the queue is damaged")]
    store.revert(old)
    outside.wait(adopts=new, instead_of=new + 5)
    outside.outbox.go_on()
    assert store.current != new, "what the user chose meanwhile stays"
    assert outside.folder.pending()[0][0].adopts is None


def test_a_revert_is_not_undone_by_what_a_killed_process_began(outside):
    """Killed after the state served, and before the queue said so."""
    store = outside.folder.personal
    state = PersonalState({"head.bias": np.zeros(3, np.float32)})
    old = store.save(state)
    new = store.save(state)
    outside.wait(adopts=new, instead_of=old)
    assert outside.folder.revert(old) == old
    outside.outbox.go_on()
    outside.outbox.flush()
    assert store.current == old
    assert outside.names() == ["Uploaded"]


def test_a_state_that_was_erased_meanwhile_is_not_waited_for(outside):
    outside.wait(adopts=7, instead_of=0)
    outside.outbox.go_on()
    assert outside.folder.personal.current == 0
    assert outside.folder.pending()[0][0].adopts is None


@pytest.mark.parametrize("changes", [{"device": "f" * 32}, {"server": "https://other"}])
def test_what_was_made_for_another_membership_is_dropped(outside, changes):
    own = {"server": "http://localhost", "device": "d" * 32}
    outside.folder.join(own["server"], Enrolled(device=own["device"], credential="pfl_device_x"))
    outside.wait(**(own | changes))
    outside.outbox.flush()
    assert (outside.requests, outside.names()) == ([], ["Dropped"])
    assert outside.taken_back == [(("c",), 0)]
    outside.wait(**own)
    outside.outbox.flush()
    assert outside.names() == ["Dropped", "Uploaded"]
