"""Devices and the real aggregator over real HTTP."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.request

import numpy as np
import pytest

from pfl_mobile.bundle import Bundle
from pfl_mobile.cli import main
from pfl_mobile.device.backoff import Backoff
from pfl_mobile.device.client import Client
from pfl_mobile.device.device import Device
from pfl_mobile.device.model import Model
from pfl_mobile.device.privacy import PrivacyPolicy
from pfl_mobile.device.store import DeviceFolder
from pfl_mobile.engines import open_session
from pfl_mobile.errors import EngineError, EngineMismatchError
from pfl_mobile.files.tensors import tensors_from_bytes
from pfl_mobile.privacy import Gaussian, NoNoise
from pfl_server.federation.config import RoundsConfig
from pfl_server.services import Services
from pfl_server.settings import ServerSettings
from tests.device.chaos import breaking
from tests.server.conftest import ADMIN_TOKEN, GENEROUS, config_of, federated_folder, serving

__all__ = ["federated_folder"]

ROUNDS, DEVICES = 3, 3
#: PyTorch loads one program at a time.
LOADING = threading.Lock()
PRIVATE = Gaussian(clip_norm=0.5, noise_multiplier=4.0, cohort=DEVICES, rounds=ROUNDS, delta=1e-6)
NONE = NoNoise(clip_norm=0.01, cohort=1, rounds=ROUNDS)


def rows(seed, n=40):
    """The label is the largest of the first four features."""
    x = np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)
    labels = x[:, :4].argmax(axis=1).astype(np.int64)
    return {"x": x, "labels": labels, "weight": np.ones(n, np.float32)}


@contextlib.contextmanager
def aggregator(folder, bundle, privacy, cohort=DEVICES, deadline_s=60.0):
    settings = ServerSettings(bundle=bundle, data=folder, enrolment="open", limits=GENEROUS)
    rounds = RoundsConfig(cohort=cohort, minimum=cohort, total=ROUNDS, retry_s=0.1, deadline_s=deadline_s)
    with Bundle.open(bundle) as opened:
        config = config_of(rounds=rounds, privacy=privacy)
        services = Services.open(settings, opened, config, admin_token=ADMIN_TOKEN)
        with serving(services) as url:
            yield url


def ask(url, path, raw=False):
    request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read() if raw else json.load(answer)


def wait_for_version(url, number):
    """A round is merged after its last update was accepted."""
    give_up = time.monotonic() + 20
    while ask(url, "/v1/versions/latest")["version"] < number:
        assert time.monotonic() < give_up, "the round was not merged"
        time.sleep(0.05)


@contextlib.contextmanager
def device(folder, url, bundle, seed=0, **settings):
    quick = Backoff(attempts=8, first_s=0.001, most_s=0.02)
    with contextlib.ExitStack() as stack:
        with LOADING:
            opened = stack.enter_context(Bundle.open(bundle))
            model = Model.open(opened, stack.enter_context(open_session(opened, "torch")))
        client = stack.enter_context(Client(url, backoff=quick, timeout_s=10.0))
        own = stack.enter_context(DeviceFolder(folder, model.id))
        found = Device(model, rows(seed), own, client, patience_s=20.0, **settings)
        found.events = []
        found.tell = found.events.append
        yield found


def together(url, folder, bundle, **settings):
    """All devices at once; their summaries."""
    summaries = {}

    def take_part(number):
        with device(folder / str(number), url, bundle, number, **settings) as found:
            summaries[number] = found.run()

    threads = [threading.Thread(target=take_part, args=(n,)) for n in range(DEVICES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [summaries[n] for n in range(DEVICES)]


def test_a_private_federation_from_enrolment_to_the_last_round(federated_folder, tmp_path):
    with aggregator(tmp_path / "server", federated_folder, PRIVATE) as url:
        summaries = together(url, tmp_path, federated_folder)
        latest = ask(url, "/v1/versions/latest")
    assert [(s.ended, s.rounds, s.dropped, s.declined) for s in summaries] == [
        ("done", ROUNDS, 0, {})
    ] * DEVICES
    assert latest["version"] == ROUNDS
    assert latest["privacy"]["epsilon"] > 0


def test_a_federation_over_connections_that_break(federated_folder, tmp_path):
    with (
        aggregator(tmp_path / "server", federated_folder, PRIVATE) as url,
        breaking(url, 1, share=0.5, most=6000) as broken,
    ):
        summaries = together(broken, tmp_path, federated_folder)
        latest = ask(url, "/v1/versions/latest")
    assert [(s.rounds, s.dropped) for s in summaries] == [(ROUNDS, 0)] * DEVICES
    assert latest["version"] == ROUNDS


def test_what_a_device_sends_is_what_is_merged(federated_folder, tmp_path):
    with aggregator(tmp_path / "server", federated_folder, NONE, cohort=1) as url:
        with device(tmp_path / "d", url, federated_folder, policy=PrivacyPolicy(require=False)) as found:
            found.run(rounds=1)
            state = found.folder.personal.load().state
            wait_for_version(url, 1)
            measured = found.measure()
        digest = ask(url, "/v1/versions/latest")["sets"]["global"]["sha256"]
        merged = tensors_from_bytes(ask(url, f"/v1/sets/{digest}", raw=True))
    with Bundle.open(federated_folder) as bundle:
        shipped = bundle.values()
    norm = np.sqrt(sum(float(((state.tensors[n] - shipped[n]) ** 2).sum()) for n in merged))
    assert norm > 0.01
    for name, value in merged.items():
        expected = shipped[name] + (state.tensors[name] - shipped[name]) * np.float32(0.01 / norm)
        assert np.allclose(value, expected, atol=1e-6)
    assert measured.version == 1


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "rows.npz"
    found = rows(5)
    np.savez(path, **found, user=np.array(["ann"] * 40))
    return path


def test_the_command_takes_part_and_says_what_it_did(federated_folder, tmp_path, npz, capsys):
    of_bob = tmp_path / "bob.npz"
    np.savez(of_bob, **rows(6), user=np.array(["bob"] * 40))
    arguments = ["--bundle", federated_folder, "--data", npz, "--user", "ann", "--engine", "torch", "--json"]
    with aggregator(tmp_path / "server", federated_folder, NONE, cohort=1, deadline_s=5.0) as url:

        def run(*more):
            given = ["device", "--server", url, *arguments, "--state", tmp_path / "d", *more]
            code = main([str(a) for a in given])
            return code, json.loads(capsys.readouterr().out)

        assert run("--once")[0] == 1  # nothing protects the updates
        assert run("--once", "--only-local-noise", "--min-noise", 1, "--state", tmp_path / "other")[0] == 1
        code, found = run("--once", "--max-epsilon", 1e9)  # that would protect nothing
        assert (code, found["error"]["type"]) == (2, "ConfigError")
        assert ask(url, "/v1/versions/latest")["version"] == 0
        code, found = run("--once", "--allow-no-privacy", "--events", tmp_path / "events.jsonl")
        assert (code, found["ended"]) == (0, "once")
        code, found = run("--allow-no-privacy", "--events", tmp_path / "events.jsonl")
        assert (code, found["ended"]) == (0, "done")
        assert found["version"] == ask(url, "/v1/versions/latest")["version"] > 0
        assert 0 <= found["shared"]["top1"] <= 1
        code, found = run("--user", "bob", "--data", of_bob)
        assert (code, found["error"]["type"]) == (2, "DeviceFolderError")
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert {"joined", "assigned", "uploaded", "reported", "measured"} <= {e["event"] for e in events}


def test_an_engine_that_cannot_train_right_takes_no_part(federated_folder):
    with Bundle.open(federated_folder) as bundle, open_session(bundle, "torch") as session:

        class Wrong:
            name, programs = "wrong", session.programs

            def run(self, program, inputs):
                out = session.run(program, inputs)
                return {n: v * np.float32(1.01) if n.startswith("grad.") else v for n, v in out.items()}

        with pytest.raises(EngineMismatchError, match="gradients"):
            Model.open(bundle, Wrong())
        golden = bundle.golden()
        bundle.golden = lambda: {"evaluate": golden["evaluate"]}
        with pytest.raises(EngineError, match="no golden call of the program 'gradients'"):
            Model.open(bundle, session)
        bundle.golden = lambda: golden
        Wrong.run = lambda self, program, inputs: session.run(program, inputs)
        Wrong.programs = {"evaluate": session.programs["evaluate"]}
        with pytest.raises(EngineError, match="no program 'gradients'"):
            Model.open(bundle, Wrong())


def test_the_command_says_what_is_wrong(federated_folder, tmp_path, npz, capsys):
    arguments = ["--bundle", federated_folder, "--data", npz, "--user", "ann", "--engine", "torch", "--json"]
    given = ["device", "--server", "http://example.org", *arguments, "--state", tmp_path / "d"]
    assert main([str(a) for a in given]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "ConfigError"
