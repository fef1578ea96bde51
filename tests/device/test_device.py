from __future__ import annotations

import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest

from pfl_mobile.device.backoff import Backoff
from pfl_mobile.device.privacy import PrivacyPolicy
from pfl_mobile.device.store import DeviceFolder
from pfl_mobile.errors import (
    DeviceError,
    DeviceFolderError,
    ServerProblem,
    StorageFullError,
    UnreachableError,
)
from pfl_mobile.files.tensors import load_tensors
from pfl_mobile.local.state import ModelId
from pfl_mobile.local.trainer import Most
from pfl_mobile.protocol.bodies import Attestation
from tests.device.conftest import ID, device, names
from tests.device.fake_server import PLAN, answer, problem
from tests.local.fake import Linear, linear_rows, plan, sgd


def test_a_device_takes_part_until_the_federation_is_finished(fake, address, tmp_path):
    fake.rounds = 2
    with device(tmp_path, address) as found:
        summary = found.run()
    assert (summary.ended, summary.rounds, summary.dropped, summary.declined) == ("done", 2, 0, {})
    assert names(found) == ["Joined", *["Assigned", "Downloaded", "Finished", "Uploaded", "Reported"] * 2]
    assert [task["round"] for task in fake.accepted] == [0, 1]
    assert summary.bytes_up > 2 * 12 * 4
    assert summary.bytes_down > 12 * 4


def test_the_update_is_the_clipped_change_of_the_shared_tensors(fake, address, tmp_path):
    with device(tmp_path, address) as found:
        found.run()
        state = found.folder.personal.load().state
    head, tensors = fake.update_of(fake.accepted[0])
    assert list(tensors) == ["head.weight"]
    change = (state.tensors["head.weight"] - fake.values["head.weight"]).astype(np.float64)
    assert np.linalg.norm(change) > 0.05
    sent = tensors["head.weight"].astype(np.float64)
    assert 0.0499 < np.linalg.norm(sent) <= 0.05
    assert np.allclose(sent, change * 0.05 / np.linalg.norm(change), rtol=1e-4)
    assert head.clipped
    assert head.steps == 12
    assert head.examples == 38  # of 60: the newest 12 to test on, then 10 for the guard


def test_the_personal_state_is_adopted_and_gone_on_from(fake, address, tmp_path):
    fake.rounds = 3
    fake.plan = PLAN.model_copy(update={"guard": PLAN.guard.model_copy(update={"tolerance": 1e9})})
    with device(tmp_path, address) as found:
        found.run()
        assert found.folder.personal.current == 3
        state = found.folder.personal.load().state
    assert np.abs(state.tensors["head.bias"]).max() > 0


def test_the_change_is_sent_although_the_guard_keeps_the_old_state(fake, address, tmp_path):
    rows = linear_rows(60)
    rows["labels"][38:] = (rows["labels"][38:] + 1) % 3  # what is learned is wrong on newer examples
    with device(tmp_path, address, examples=rows) as found:
        found.run()
        assert found.folder.personal.current == 0
    assert next(e for e in found.events if type(e).__name__ == "Finished").status == "kept"
    _, tensors = fake.update_of(fake.accepted[0])
    assert np.abs(tensors["head.weight"]).max() > 0
    assert fake.accepted[0]["evaluations"][0]["adopted"] is False
    report = fake.accepted[0]["evaluations"][0]
    assert report["global"] == report["personalized"]  # no state of its own: the values as sent serve


def test_evaluation_reports_are_sums_over_the_newest_examples(fake, address, tmp_path):
    with device(tmp_path, address) as found:
        found.run()
        state = found.folder.personal.load().state
    report = fake.accepted[0]["evaluations"][0]
    newest = {name: value[48:] for name, value in linear_rows(60).items()}
    model = Linear(12)
    for kind, values in (
        ("global", {**model.initial(), **fake.values}),
        ("personalized", state.tensors),
    ):
        out = model.run("evaluate", {**newest, **values})
        assert report[kind]["loss"]["weight"] == 12
        assert report[kind]["loss"]["sum"] == pytest.approx(float(out["loss_sum"][0]), rel=1e-5)
        assert report[kind]["top1"]["sum"] == float(out["top1_sum"][0])


def test_values_are_downloaded_once(fake, address, tmp_path):
    fake.rounds = 3
    with device(tmp_path, address) as found:
        found.run()
    assert [e.cached for e in found.events if type(e).__name__ == "Downloaded"] == [False, True, True]
    assert sum(path.startswith("/v1/sets/") for _, path in fake.requests) == 1


def test_only_values_of_the_present_task_stay_on_the_disk(fake, address, tmp_path):
    fake.rounds = 2
    with device(tmp_path, address) as found:
        found.run(rounds=1)
        fake.values = {"head.weight": np.zeros((3, 4), np.float32)}
        found.run()
    assert [p.name for p in (tmp_path / "sets").iterdir()] == [list(fake.blobs)[-1]]


def test_a_damaged_download_on_the_disk_is_fetched_again(fake, address, tmp_path):
    fake.rounds = 2
    with device(tmp_path, address) as found:
        found.run(rounds=1)
        path = next((tmp_path / "sets").iterdir())
        path.write_bytes(b"x" * 100)
        found.run()
        assert load_tensors(path)["head.weight"].shape == (3, 4)


def test_the_credential_is_readable_by_the_owner_alone(fake, address, tmp_path):
    with device(tmp_path, address) as found:
        found.run()
    mode = stat.S_IMODE(os.stat(tmp_path / "device.json").st_mode)
    assert mode == 0o600
    assert json.loads((tmp_path / "device.json").read_text())["credential"] in fake.devices.values()


def test_a_device_enrols_once(fake, address, tmp_path):
    fake.rounds = 2
    for _ in range(2):
        with device(tmp_path, address) as found:
            found.run(rounds=1)
    assert len(fake.devices) == 1
    assert found.events[0].again


def test_one_folder_has_one_process(tmp_path):
    with (
        DeviceFolder(tmp_path, ID),
        pytest.raises(DeviceFolderError, match="in use"),
    ):
        DeviceFolder(tmp_path, ID)
    DeviceFolder(tmp_path, ID).close()


def test_a_folder_of_another_model_or_server_is_refused(fake, address, tmp_path):
    with device(tmp_path, address) as found:
        found.run()
    other = ModelId("linear", "2", ID.fingerprint)
    with pytest.raises(DeviceFolderError, match="linear 1"):
        DeviceFolder(tmp_path, other)
    with (
        device(tmp_path, address.replace("127.0.0.1", "localhost")) as found,
        pytest.raises(DeviceFolderError, match="belongs to a device of"),
    ):
        found.run()


def test_a_folder_of_another_user_is_refused(tmp_path):
    DeviceFolder(tmp_path, ID).close()
    for _ in range(2):
        DeviceFolder(tmp_path, ID, "ann").close()
    with pytest.raises(DeviceFolderError, match="of user 'ann', not of 'bob'"):
        DeviceFolder(tmp_path, ID, "bob")
    (tmp_path / "user.json").write_text("{")
    with pytest.raises(DeviceFolderError, match="damaged"):
        DeviceFolder(tmp_path, ID, "ann")


def test_another_bundle_is_told_before_the_device_enrols(fake, address, tmp_path):
    fake.bundle = {**fake.bundle, "version": "7"}
    with device(tmp_path, address) as found, pytest.raises(DeviceError, match="trains linear 7"):
        found.run()
    assert fake.devices == {}


def test_a_revoked_device_stops(fake, address, tmp_path):
    fake.refuse["POST", "check-in"] = problem(403, "device-revoked")
    with device(tmp_path, address) as found, pytest.raises(ServerProblem) as error:
        found.run()
    assert error.value.code == "device-revoked"


# -- fail closed


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"mechanism": "none"}, "nothing protects"),
        ({"clip_norm": None}, "not clipped"),
        ({"noise_multiplier": 0.0}, "adds no noise"),
        ({"mechanism": "local"}, "adds no noise"),
    ],
)
def test_without_protection_nothing_is_sent(fake, address, tmp_path, change, why):
    fake.privacy |= change
    with device(tmp_path, address) as found:
        summary = found.run()
    assert summary.ended == "privacy"
    assert summary.declined == {"privacy": 1}
    assert why in next(e for e in found.events if type(e).__name__ == "Declined").why
    assert next(iter(fake.tasks.values()))["declined"] == "privacy"
    assert not any(method == "PUT" or path.endswith("/evaluation") for method, path in fake.requests)
    assert list((tmp_path / "queue").iterdir()) == []


def test_the_user_may_allow_updates_without_protection(fake, address, tmp_path):
    fake.privacy |= {"mechanism": "none", "clip_norm": None, "noise_multiplier": 0.0}
    with device(tmp_path, address, policy=PrivacyPolicy(require=False)) as found:
        assert found.run().rounds == 1
    head, _ = fake.update_of(fake.accepted[0])
    assert not head.clipped


def test_too_large_an_epsilon_is_refused(fake, address, tmp_path):
    with device(tmp_path, address, policy=PrivacyPolicy(max_epsilon=2.0)) as found:
        assert found.run().ended == "privacy"
    assert fake.accepted == []


def test_local_noise_is_added_on_the_device_and_reports_stay(fake, address, tmp_path):
    fake.privacy |= {"mechanism": "local", "noise_multiplier": 0.0, "local_noise_multiplier": 1000.0}
    with device(tmp_path, address) as found:
        found.run()
    head, tensors = fake.update_of(fake.accepted[0])
    assert next(e for e in found.events if type(e).__name__ == "Finished").clipped
    assert not head.clipped  # that is for the device to know
    spread = float(tensors["head.weight"].std())
    assert 15 < spread < 150  # 1000 * 0.05 = 50, over 12 values
    assert fake.accepted[0]["evaluations"] == []


def test_a_plan_that_asks_for_personal_tensors_gets_nothing(fake, address, tmp_path):
    fake.plan = PLAN.model_copy(update={"upload": ("head.*",)})
    original = fake.check_in

    def lying():
        body = original()[2]
        task = json.loads(body)
        if task["status"] == "task":
            task["task"]["layout"].append({"name": "head.bias", "shape": [3]})
        return answer(task)

    fake.check_in = lying
    with device(tmp_path, address) as found:
        found.run()
    assert found.summary.declined == {"plan": 1}
    assert fake.accepted == []


# -- tasks that come to nothing


def test_training_that_diverges_sends_nothing(fake, address, tmp_path):
    session = Linear()
    session.poison_at = 3
    with device(tmp_path, address, session=session) as found:
        summary = found.run()
    assert summary.declined == {"diverged": 1}
    assert fake.accepted == []
    assert found.folder.personal.current == 0


@pytest.mark.parametrize(("most", "reason"), [(Most(steps=11), "plan"), (Most(seconds=1e-9), "too_slow")])
def test_more_than_the_bundle_allows_is_declined(fake, address, tmp_path, most, reason):
    with device(tmp_path, address) as found:
        found.model = found.pipeline.model = replace(found.model, work=most)
        assert found.run().declined == {reason: 1}
    assert fake.accepted == []
    assert next(iter(fake.tasks.values()))["declined"] == reason


def test_a_user_with_too_few_examples_declines(fake, address, tmp_path):
    with device(tmp_path, address, examples=linear_rows(1)) as found:
        assert found.run().declined == {"no_examples": 1}


def test_a_plan_without_training_is_no_success(fake, address, tmp_path):
    fake.plan = plan({"kind": "move", "toward": "global", "rate": 1.0}, upload=["role:shared"])
    with device(tmp_path, address) as found:
        assert found.run().declined == {"plan": 1}
    assert fake.accepted == []


def test_a_plan_that_does_not_train_what_it_sends_is_declined_before_training(fake, address, tmp_path):
    train = {
        "kind": "train",
        "group": ["role:personal"],
        "epochs": 1,
        "optimizer": {"kind": "sgd", "lr": 0.1},
    }
    fake.plan = plan(train, upload=["role:shared"])
    with device(tmp_path, address) as found:
        assert found.run().declined == {"plan": 1}
    assert found.folder.personal.current == 0


def test_a_device_for_which_the_shared_model_is_good_enough_says_so(fake, address, tmp_path):
    fake.plan = PLAN.model_copy(update={"guard": PLAN.guard.model_copy(update={"appeal": 100.0})})
    with device(tmp_path, address) as found:
        assert found.run().declined == {"good_enough": 1}


def test_a_task_whose_time_is_over_is_given_up(fake, address, tmp_path):
    now = [0.0]

    class Slow(Linear):
        def run(self, program, inputs):
            now[0] += 5.0
            return super().run(program, inputs)

    with device(tmp_path, address, session=Slow(), clock=lambda: now[0]) as found:
        assert found.run().declined == {"too_slow": 1}


def test_values_that_do_not_belong_to_the_model_are_refused(fake, address, tmp_path):
    fake.values = {"head.weight": np.full((3, 4), np.nan, np.float32)}
    with device(tmp_path, address) as found:
        assert found.run().declined == {"plan": 1}


@pytest.mark.parametrize("code", ["round-closed", "update-too-large"])
def test_a_refused_update_is_dropped_and_told(fake, address, tmp_path, code):
    with device(tmp_path, address) as found:
        original = fake.update

        def refuse(method, task, headers, body):
            if method == "PUT":
                b"".join(body)
                fake.round += 1
                return problem(410 if code == "round-closed" else 422, code)
            return original(method, task, headers, body)

        fake.update = refuse
        summary = found.run()
    assert (summary.rounds, summary.dropped) == (0, 1)
    assert code in next(e for e in found.events if type(e).__name__ == "Dropped").why
    assert list((tmp_path / "queue").iterdir()) == []


# -- the queue


def test_an_update_waits_in_the_folder_while_the_server_is_away(fake, address, tmp_path):
    with device(tmp_path, address, patience_s=0.0) as found:
        fake.update = lambda method, task, headers, body: (b"".join(body), problem(503, "unavailable"))[1]
        with pytest.raises((ServerProblem, UnreachableError)):
            found.run()
    assert len(list((tmp_path / "queue").iterdir())) == 2
    del fake.update
    with device(tmp_path, address) as found:
        assert found.run().rounds == 1
    assert names(found) == ["Joined", "Uploaded", "Reported"]
    assert list((tmp_path / "queue").iterdir()) == []


def test_an_expired_update_is_dropped_and_told(fake, address, tmp_path):
    now = [0.0]
    with device(tmp_path, address, clock=lambda: now[0], patience_s=0.0) as found:
        fake.update = lambda method, task, headers, body: (b"".join(body), problem(503, "unavailable"))[1]
        with pytest.raises((ServerProblem, UnreachableError)):
            found.run()
    now[0] = 1000.0
    fake.round = 1
    with device(tmp_path, address, clock=lambda: now[0]) as found:
        summary = found.run()
    assert (summary.rounds, summary.dropped) == (0, 1)
    assert "expired" in next(e for e in found.events if type(e).__name__ == "Dropped").why


def test_a_damaged_update_in_the_queue_is_dropped_and_trained_again(fake, address, tmp_path):
    with device(tmp_path, address, patience_s=0.0) as found:
        fake.update = lambda method, task, headers, body: (b"".join(body), problem(503, "unavailable"))[1]
        with pytest.raises((ServerProblem, UnreachableError)):
            found.run()
    del fake.update
    path = next((tmp_path / "queue").glob("*.update"))
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with device(tmp_path, address) as found:
        summary = found.run()
    assert (summary.rounds, summary.dropped) == (1, 1)


# -- how a run ends


def test_once_checks_in_once_and_waits_for_nothing(fake, address, tmp_path):
    fake.rounds = 3
    with device(tmp_path, address) as found:
        summary = found.run(once=True)
    assert (summary.ended, summary.rounds) == ("once", 1)
    fake.check_in = lambda: answer({"status": "wait", "retry_after_s": 600.0, "reason": "full"})
    with device(tmp_path, address) as found:
        found.cancel.wait = pytest.fail
        assert found.run(once=True).rounds == 0
    assert names(found) == ["Joined", "Waiting"]


def test_a_cancelled_device_keeps_its_task(fake, address, tmp_path):
    with device(tmp_path, address) as found:
        seen = found.tell

        def stop(event):
            seen(event)
            if type(event).__name__ == "Stepped" and event.step == 5:
                found.cancel.set()

        found.tell = stop
        assert found.run().ended == "cancelled"
        assert found.folder.personal.checkpoint_path().exists()
    assert next(iter(fake.tasks.values()))["declined"] is None
    with device(tmp_path, address) as found:
        assert found.run().rounds == 1
    assert min(e.step for e in found.events if type(e).__name__ == "Stepped") == 6


def test_offline_devices_wait_and_go_on(fake, tmp_path):
    from tests.device.fake_server import serving

    with serving(fake) as address:
        pass  # the port is free again
    with device(tmp_path, address, patience_s=0.2) as found, pytest.raises(UnreachableError):
        found.run()
    assert "Offline" in names(found)


CONTROLLED = plan(
    {"kind": "move", "group": ["role:shared"], "toward": "global", "rate": 1.0},
    sgd(lr=0.3, steps=6, group=["role:shared"]),
    {"kind": "combine", "group": ["role:shared"], "makes": "c_i", "terms": [{"of": "theta"}]},
    upload=["role:shared"],
    upload_copies=["c_i"],
    copies={"c_i": {"of": "zero", "group": ["role:shared"]}},
    keep=["c_i"],
)


def test_control_variates_are_kept_although_the_guard_keeps_the_old_state(fake, address, tmp_path):
    fake.plan = CONTROLLED
    rows = linear_rows(60)
    rows["labels"][38:] = (rows["labels"][38:] + 1) % 3
    with device(tmp_path, address, examples=rows) as found:
        found.run()
        state = found.folder.personal.load().state
    assert next(e for e in found.events if type(e).__name__ == "Finished").status == "kept"
    assert dict(state.tensors) == {}
    assert list(state.copies) == ["c_i"]
    _, tensors = fake.update_of(fake.accepted[0])
    assert sorted(tensors) == ["copy:c_i:head.weight", "head.weight"]


def test_control_variates_are_taken_back_when_the_update_is_refused(fake, address, tmp_path):
    fake.plan, fake.rounds = CONTROLLED, 2
    with device(tmp_path, address) as found:
        found.run(rounds=1)
        first = found.folder.personal.load()
        original = fake.update

        def refuse(method, task, headers, body):
            if method == "PUT":
                b"".join(body)
                fake.round += 1
                return problem(410, "round-closed")
            return original(method, task, headers, body)

        fake.values = {"head.weight": np.full((3, 4), -0.3, np.float32)}
        fake.update = refuse
        found.run()
        second = found.folder.personal.load()
    assert second.version > first.version
    assert np.array_equal(second.state.copies["c_i"]["head.weight"], first.state.copies["c_i"]["head.weight"])
    assert found.summary.dropped == 1


def test_a_device_proves_itself_where_the_federation_asks_for_it(fake, address, tmp_path):
    fake.attestation = ("play_integrity",)
    with device(tmp_path, address) as found, pytest.raises(DeviceError, match="attestation"):
        found.run()

    def attest(challenge, kinds):
        return Attestation(kind=kinds[0], challenge=challenge, verdict="yes")

    with device(tmp_path, address, attest=attest, group="north", token="t") as found:
        found.run()
    sent = fake.enrolled
    assert sent["attestation"] == {"kind": "play_integrity", "challenge": "prove it", "verdict": "yes"}
    assert (sent["group"], sent["token"]) == ("north", "t")


def test_a_device_that_leaves_forgets_its_credential_and_keeps_its_state(fake, address, tmp_path):
    with device(tmp_path, address) as found:
        found.run()
        found.leave()
        assert found.folder.membership is None
        assert found.folder.personal.current == 1
    assert fake.devices == {}
    assert not (tmp_path / "device.json").exists()


def test_a_device_that_left_already_can_forget_its_credential(fake, address, tmp_path):
    with device(tmp_path, address) as found:
        found.run()
        original = fake.json

        def lost(method, path, headers, sent):
            return (
                problem(401, "unauthorized") if method == "DELETE" else original(method, path, headers, sent)
            )

        fake.json = lost  # it left, and the answer did not arrive
        found.leave()
        assert found.folder.membership is None


def test_a_device_does_not_leave_at_another_server(fake, address, tmp_path):
    with device(tmp_path, address) as found:
        found.run()
        found.client.server = "http://127.0.0.1:1"
        found.client.credential = None
        with pytest.raises(DeviceFolderError, match="belongs to a device of"):
            found.leave()
        assert found.client.credential is None
        assert found.folder.membership is not None


def test_a_full_disk_behind_the_safe_update_costs_nothing(fake, address, tmp_path, monkeypatch):
    fake.plan = PLAN.model_copy(update={"guard": PLAN.guard.model_copy(update={"tolerance": 1e9})})
    with device(tmp_path, address) as found:
        adopt, full = found.folder.personal.adopt, [True]

        def adopting(version):
            if full and full.pop():
                raise StorageFullError("no space left", mend="free some space")
            adopt(version)

        monkeypatch.setattr(found.folder.personal, "adopt", adopting)
        summary = found.run()
        assert (summary.rounds, summary.declined, summary.dropped) == (1, {}, 0)
        assert found.folder.personal.current == 1


def test_a_device_out_of_memory_declines_the_task(fake, address, tmp_path, monkeypatch):
    with device(tmp_path, address) as found:

        def load(_: str) -> None:
            raise MemoryError

        monkeypatch.setattr(found.folder, "load_set", load)
        summary = found.run()
    assert summary.declined == {"out_of_memory": 1}


def test_an_aggregator_that_asks_for_time_gets_it_after_the_last_try_too(fake, address, tmp_path):
    fake.check_in = lambda: problem(503, "unavailable", **{"Retry-After": "1"})
    quick = Backoff(attempts=1, first_s=0.001, most_s=0.002)
    with device(tmp_path, address, backoff=quick, patience_s=0.9) as found, pytest.raises(ServerProblem):
        found.run()
    waits = [event.seconds for event in found.events if type(event).__name__ == "Offline"]
    assert waits
    assert min(waits) >= 1


def test_facts_name_the_engine_and_the_sdk_and_examples_are_rounded(fake, address, tmp_path):
    seen = []
    original = fake.json

    def listening(method, path, headers, sent):
        seen.append((path, sent))
        return original(method, path, headers, sent)

    fake.json = listening
    with device(tmp_path, address, examples=linear_rows(400)) as found:
        found.run()
    sent = next(body for path, body in seen if path == "/v1/check-in")
    assert sent["examples"] == 250  # 256 of 400
    assert sent["facts"]["engine"] == "fake"
    assert sent["facts"]["sdk"].startswith("pfl-mobile-python")
