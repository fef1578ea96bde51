"""``pfl serve`` as real processes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pfl_mobile import cli
from pfl_mobile.bundle import Bundle
from pfl_mobile.bundle.paths import MANIFEST, SIGNATURE
from pfl_mobile.bundle.sign import generate_key, sign
from pfl_mobile.errors import ConfigError, OtherSettingsError, TamperedBundleError
from pfl_mobile.federation.default_privacy import default_privacy
from pfl_mobile.privacy import Ledger, checked_privacy
from pfl_server import launch
from pfl_server.federation.config import RoundsConfig
from pfl_server.federation.defaults import federation_config
from pfl_server.federation.restart import refuse_others
from pfl_server.services import Services
from pfl_server.settings import ServerSettings
from tests.server.conftest import ADMIN_TOKEN, config_of


@dataclass
class Process:
    """A running ``pfl serve``."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]
    log: Path
    verify: Any = (
        False  # plain HTTP: reading all the authorities that there are takes longer than the requests
    )

    @property
    def url(self) -> str:
        return str(self.facts["url"])

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, verify=self.verify, timeout=30)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path, federated_folder: Path) -> Iterator[Start]:
    """Start ``pfl serve`` with options; what still runs at the end is killed."""
    with contextlib.ExitStack() as stack:

        def run(*options: object, verify: Any = False) -> Process:
            log = tmp_path / f"log-{secrets.token_hex(4)}"
            program = "import sys; from pfl_mobile.cli import main; sys.exit(main())"
            command = [sys.executable, "-c", program, "serve", str(federated_folder), "--json", "--port", "0"]
            command += map(str, options)
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=log.open("w"),
                    text=True,
                    cwd=tmp_path,
                    env=os.environ | {"PFL_ADMIN_TOKEN": ADMIN_TOKEN},
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            lines: list[str] = []
            while not (lines and lines[-1].rstrip() == "}"):
                line = process.stdout.readline()
                assert line, log.read_text()
                lines.append(line)
            found = Process(process, json.loads("".join(lines)), log, verify)
            _wait(found)
            return found

        yield run


def _wait(found: Process, seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx2.TransportError), found.client() as client:
            if client.get("/readyz").status_code == 200:
                return
        assert found.process.poll() is None, found.log.read_text()
        assert time.monotonic() < give_up, found.log.read_text()
        time.sleep(0.1)


def _enrol(client: httpx2.Client) -> dict[str, str]:
    bundle = client.get("/v1/federation").json()["bundle"]
    answer = client.post("/v1/devices", json={"bundle": bundle})
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['credential']}"}


def _check_in(client: httpx2.Client, headers: dict[str, str]) -> dict[str, Any]:
    bundle = client.get("/v1/federation").json()["bundle"]
    answer = client.post("/v1/check-in", json={"bundle": bundle, "examples": 10}, headers=headers)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


OPEN = ("--open-enrolment", "--cohort", 4, "--rounds", 10)


@pytest.mark.slow
def test_it_starts_with_nothing_else_set_up_and_ends_well_on_sigterm(start: Start, tmp_path: Path) -> None:
    server = start("--open-enrolment")
    with server.client() as client:
        _enrol(client)
    assert server.facts["config"]["privacy"]["mechanism"] == "matrix"
    assert server.facts["config"]["privacy"]["budget_epsilon"] == 8.0
    assert (tmp_path / "pfl-server-data" / "federation.db").is_file()
    assert server.stop() == 0
    for line in server.log.read_text().splitlines():
        json.loads(line)


@pytest.mark.slow
def test_a_running_request_is_finished_before_the_server_ends(start: Start) -> None:
    server = start(*OPEN)
    with server.client() as client:
        bundle = client.get("/v1/federation").json()["bundle"]
    body = json.dumps({"bundle": bundle}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body[:10])
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.7)
        assert server.process.poll() is None
        connection.sendall(body[10:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 201")
    assert server.process.wait(30) == 0


@pytest.mark.slow
def test_a_later_start_goes_on_with_the_same_federation(start: Start) -> None:
    first = start(*OPEN)
    with first.client() as client:
        headers = _enrol(client)
    assert first.stop() == 0
    second = start()
    assert second.facts["config"] == first.facts["config"]
    with second.client() as client:
        assert _check_in(client, headers)["status"] in ("task", "wait")
    assert second.stop() == 0


@pytest.mark.slow
def test_two_servers_and_several_workers_share_one_postgresql(
    start: Start, postgres_url: str, tmp_path: Path
) -> None:
    shared = ("--db", postgres_url, "--blobs", tmp_path / "blobs", *OPEN)
    one, other = start(*shared, "--processes", 2), start(*shared)
    with one.client() as here, other.client() as there:
        devices = [_enrol(here if n % 2 else there) for n in range(8)]
        answers = [_check_in(there if n % 2 else here, headers) for n, headers in enumerate(devices)]
        tasks = [a["task"] for a in answers if a["status"] == "task"]
        assert tasks
        assert {t["round"] for t in tasks} == {0}
        digest = tasks[0]["sets"]["global"]["sha256"]
        assert here.get(f"/v1/sets/{digest}", headers=devices[0]).content == (
            there.get(f"/v1/sets/{digest}", headers=devices[1]).content
        )
    assert one.stop() == 0
    assert other.stop() == 0


_ENROLMENTS = 'pfl_http_requests_total{method="POST",route="/v1/devices",status="201"}'


def _enrolments(server: Process) -> tuple[list[str], str]:
    """The lines that count answers to enrolments, of whatever status, and all metrics; by a new connection."""
    with server.client() as client:
        answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    lines = answer.text.splitlines()
    return [n for n in lines if 'route="/v1/devices"' in n and "requests_total" in n], answer.text


@pytest.mark.slow
def test_workers_on_sqlite_answer_for_all_of_them(start: Start) -> None:
    server = start(*OPEN, "--processes", 2, "--metrics", "public")
    for _ in range(12):  # a connection each, so that several workers get some
        with server.client() as client:
            _enrol(client)
    # A worker counts an answer after it has sent it, so another one may be asked just before.
    give_up = time.monotonic() + 30
    while _enrolments(server)[0] != [f"{_ENROLMENTS} 12.0"]:
        assert time.monotonic() < give_up, (_enrolments(server)[0], server.log.read_text())
        time.sleep(0.05)
    for _ in range(6):
        lines, text = _enrolments(server)
        assert lines == [f"{_ENROLMENTS} 12.0"]
        assert 'pfl_devices{state="active"} 12.0' in text
    assert server.stop() == 0


@pytest.mark.slow
def test_tls_is_spoken(start: Start, tmp_path: Path) -> None:
    import datetime
    import ipaddress
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    cert, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.create_default_context(cafile=str(cert))
    server = start(*OPEN, "--tls-cert", cert, "--tls-key", private, verify=context)
    assert server.url.startswith("https://127.0.0.1:")
    with server.client() as client:
        _enrol(client)


def _error(capsys: pytest.CaptureFixture[str], *options: object) -> dict[str, str]:
    code = cli.main(["serve", *map(str, options), "--json"])
    assert code == 2
    found: dict[str, str] = json.loads(capsys.readouterr().out)["error"]
    return found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--no-privacy", "--epsilon", 2), "--no-privacy"),
        (("--cohort", 0), "cohort"),
        (("--cohort", 5, "--minimum", 6), "minimum"),
        (("--strategy", "fedmagic"), "fedmagic"),
        (("--set", "mu"), "NAME=VALUE"),
        (("--dashboard", "everybody"), "--dashboard"),
        (("--tls-cert", "x.pem"), "TLS"),
        (("--config", "nothing.json"), "nothing.json"),
        (("--limits", "nothing.json"), "nothing.json"),
        (("--db", "mysql://h/d"), "mysql"),
        (("--blobs", "gs://bucket"), "gs"),
        (("--host", "256.0.0.1"), "listen"),
        (("--attestation", "nothing"), "verifier"),
        (("--epsilon", 2, "--rounds", 0), "rounds"),
        (("--rule", "magic"), "magic"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    capsys: pytest.CaptureFixture[str],
    federated_folder: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    words: str,
) -> None:
    error = _error(capsys, federated_folder, "--data", tmp_path / "data", *options)
    assert words in error["message"] + error["mend"]
    assert error["mend"]


@pytest.mark.parametrize("name", ["os:system", "no_such_module_here:x"])
def test_a_name_that_is_no_verifier_is_refused_without_a_traceback(
    capsys: pytest.CaptureFixture[str], federated_folder: Path, tmp_path: Path, name: str
) -> None:
    code = cli.main(["serve", str(federated_folder), "--data", str(tmp_path / "data"), "--attestation", name])
    assert code == 2
    assert capsys.readouterr().err.startswith("error (")


def test_a_short_admin_token_is_refused(
    capsys: pytest.CaptureFixture[str],
    federated_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PFL_ADMIN_TOKEN", "admin")
    error = _error(capsys, federated_folder, "--data", tmp_path / "data")
    assert error["type"] == "SecretError"
    assert "32" in error["message"]


def test_a_federation_of_other_settings_is_refused(
    capsys: pytest.CaptureFixture[str], federated_folder: Path, tmp_path: Path
) -> None:
    config = federation_config({"rounds": {"cohort": 5}})
    settings = ServerSettings(bundle=federated_folder, data=tmp_path / "data")
    with Bundle.open(federated_folder) as bundle:
        Services.open(settings, bundle, config).close()
    where = (federated_folder, "--data", tmp_path / "data", "--port", 0)
    other = tmp_path / "other.json"
    other.write_text(config_of(rounds=RoundsConfig(cohort=5, minimum=2, total=9)).dump())
    plan = tmp_path / "privacy.json"
    plan.write_text(json.dumps(config.privacy.model_dump(mode="json") | {"clip_norm": 3.0}))
    for options, words in (
        (("--cohort", 6), "--cohort 6"),
        (("--cohort", 5, "--min-separation", 3), "--min-separation 3"),
        (("--set", "mu=1"), "--set mu 1"),
        (("--group", "north"), '--group ["north"]'),
        (("--epsilon", 2), "--epsilon 2"),
        (("--no-privacy",), "--no-privacy"),
        (("--config", other), "other.json: rounds.total 9"),
        (("--privacy", plan), "--privacy: clip_norm 3.0"),
    ):
        error = _error(capsys, *where, *options)
        assert error["type"] == "OtherSettingsError"
        assert words in error["message"]
        assert "privacy.band" not in error["message"]
        assert "--data" in error["mend"]
        assert f"leave {next(n for n in reversed(options) if str(n).startswith('--'))} out" in error["mend"]


def test_options_that_say_what_the_federation_is_are_fine(federated_folder: Path, tmp_path: Path) -> None:
    config = federation_config({"rounds": {"cohort": 5, "total": 30}, "groups": ("north",)}, epsilon=4.0)
    with Bundle.open(federated_folder) as bundle:
        Services.open(ServerSettings(bundle=federated_folder, data=tmp_path), bundle, config).close()
    stored = launch.stored_config(ServerSettings(bundle=federated_folder, data=tmp_path))
    assert stored == config
    said = {"rounds": {"cohort": 5}, "groups": ("north",)}
    refuse_others(stored, said, file=("f", config.dump()), privacy=config.privacy, stated={"epsilon": 4})
    with pytest.raises(OtherSettingsError, match=r"f: rounds\.total 31"):
        refuse_others(stored, said, file=("f", '{"rounds": {"cohort": 9, "total": 31}}'))


def test_a_port_in_use_is_refused(
    capsys: pytest.CaptureFixture[str], federated_folder: Path, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = _error(capsys, federated_folder, "--data", tmp_path / "data", "--port", port)
    assert str(port) in error["message"]


def test_headers_of_proxies_are_believed_only_where_they_are_named(tmp_path: Path) -> None:
    settings = ServerSettings(bundle=tmp_path)
    assert not launch._config(settings, "x:y").proxy_headers
    behind = launch._config(settings.model_copy(update={"trust_proxy": ("10.0.0.7",)}), "x:y")
    assert behind.proxy_headers
    assert behind.forwarded_allow_ips == ["10.0.0.7"]
    assert settings.on_loopback
    assert not settings.model_copy(update={"trust_proxy": ("10.0.0.7",)}).on_loopback


class TestDefaults:
    def test_the_noise_keeps_the_budget_over_all_rounds_without_assumptions(self) -> None:
        config = default_privacy(cohort=50, rounds=100, min_separation=10)
        assert (config.mechanism, config.sampling) == ("matrix", "none")
        ledger = Ledger(config)
        ledger.record(100)
        assert 7.9 < ledger.epsilon() <= 8.0

    def test_devices_that_come_less_often_need_less_noise(self) -> None:
        often = default_privacy(cohort=50, rounds=100)
        seldom = default_privacy(cohort=50, rounds=100, min_separation=20)
        assert seldom.noise_multiplier < often.noise_multiplier

    def test_without_a_last_round_there_is_no_default(self) -> None:
        with pytest.raises(ConfigError, match="number of rounds"):
            federation_config({"rounds": {"total": None}})

    def test_no_noise_has_to_be_said(self) -> None:
        assert federation_config({}, private=False).privacy.mechanism == "none"
        assert federation_config({}).privacy.mechanism == "matrix"

    def test_options_change_what_a_file_says(self) -> None:
        base = federation_config({"rounds": {"cohort": 7}}, private=False)
        changed = federation_config({"rounds": {"deadline_s": 5.0}}, base=base)
        assert (changed.rounds.cohort, changed.rounds.deadline_s) == (7, 5.0)
        assert changed.privacy == base.privacy

    def test_a_privacy_plan_says_cohort_and_rounds_where_nobody_else_does(self) -> None:
        plan = default_privacy(cohort=200, rounds=30)
        planned = federation_config({}, privacy=plan).rounds
        assert (planned.cohort, planned.total, planned.minimum) == (200, 30, 80)
        assert federation_config({"rounds": {"total": 20}}, privacy=plan).rounds.total == 20
        with pytest.raises(ConfigError, match="for 30 rounds, and there are to be 31"):
            federation_config({"rounds": {"total": 31}}, privacy=plan)
        with pytest.raises(ConfigError, match="for 30 rounds"):
            federation_config({"rounds": {"total": 31}}, base=federation_config({}, privacy=plan))


@pytest.mark.slow
def test_what_privacy_plan_writes_is_served_as_it_is(start: Start, tmp_path: Path) -> None:
    plan = default_privacy(cohort=4, rounds=3)
    plan.dump(tmp_path / "privacy.json")
    facts = start("--privacy", tmp_path / "privacy.json").facts
    assert (facts["rounds"], facts["cohort"]) == ("synchronous, 3, 600 s each", "4, at least 2")
    assert facts["config"]["privacy"] == plan.model_dump(mode="json")


# -- what workers check


def _signed(folder: Path, to: Path, key: Path) -> Path:
    shutil.copytree(folder, to)
    (to / SIGNATURE).write_bytes(sign((to / MANIFEST).read_bytes(), str(key)))
    return to


def _touch_up(bundle: Path) -> None:
    """Another manifest of the same model: what the database knows of it does not tell the two apart."""
    manifest = bundle / MANIFEST
    manifest.write_bytes(manifest.read_bytes() + b"\n")


def _damage(bundle: Path) -> None:
    values = bundle / json.loads((bundle / MANIFEST).read_bytes())["values"]
    data = bytearray(values.read_bytes())
    data[-1] ^= 1
    values.write_bytes(data)


WORKERS: dict[str, tuple[Callable[[Path, Path], object], bool]] = {
    "nothing changed": (lambda bundle, other: None, True),
    "signed by another key": (
        lambda bundle, other: (bundle / SIGNATURE).write_bytes(
            sign((bundle / MANIFEST).read_bytes(), str(other))
        ),
        False,
    ),
    "not signed any more": (lambda bundle, other: (bundle / SIGNATURE).unlink(), False),
    "changed after it was signed": (lambda bundle, other: _touch_up(bundle), False),
    "a damaged file": (lambda bundle, other: _damage(bundle), False),
    "gone": (lambda bundle, other: shutil.rmtree(bundle), False),
}


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_checks_what_the_first_process_checked(
    name: str,
    pinned: bool,
    federated_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change, fine = WORKERS[name]
    key = generate_key(tmp_path / "key")
    generate_key(tmp_path / "other")
    bundle = _signed(federated_folder, tmp_path / "bundle", tmp_path / "key")
    settings = ServerSettings(bundle=bundle, data=tmp_path / "data", public_key=key if pinned else None)
    started: list[ServerSettings] = []
    monkeypatch.setattr(launch, "_supervise", lambda settings, *_: started.append(settings))
    with launch.open_bundle(settings) as opened:
        services = Services.open(settings, opened, config_of())
        launch.run(settings.model_copy(update={"processes": 2}), opened, services, socket.socket())
    change(bundle, tmp_path / "other")
    monkeypatch.setenv(launch._SETTINGS, started[0].model_dump_json())
    monkeypatch.setenv(launch._CLOCK, str(services.clock.began))
    monkeypatch.setattr(launch.logs, "set_up", lambda: None)
    if fine or (not pinned and name in ("signed by another key", "not signed any more")):
        app = launch.worker()  # without a key it is the manifest that counts
        app.state.services.close()
        return
    with pytest.raises(SystemExit):
        launch.worker()
    assert "bundle" in caplog.text


def test_a_worker_of_an_unsigned_bundle_opens_no_other(
    federated_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(federated_folder, tmp_path / "bundle"))
    settings = ServerSettings(bundle=bundle, data=tmp_path / "data")
    with launch.open_bundle(settings) as opened:
        found = settings.model_copy(update={"manifest_sha256": launch._manifest_sha256(opened)})
    launch.open_bundle(found).close()
    _touch_up(bundle)
    with pytest.raises(TamperedBundleError, match="started with"):
        launch.open_bundle(found)


def test_a_server_refuses_a_bundle_of_another_key(federated_folder: Path, tmp_path: Path) -> None:
    generate_key(tmp_path / "key")
    other = generate_key(tmp_path / "other")
    bundle = _signed(federated_folder, tmp_path / "bundle", tmp_path / "key")
    arguments = [
        "serve",
        str(bundle),
        "--data",
        str(tmp_path / "data"),
        "--open-enrolment",
        "--public-key",
        other,
    ]
    assert cli.main(arguments) == 2
    assert not (tmp_path / "data" / "blobs").exists()


def test_all_that_a_server_keeps_is_private(federated_folder: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        for place in (tmp_path / "new" / "data", tmp_path / "old"):
            if place.name == "old":
                place.mkdir(mode=0o777)
            settings = ServerSettings(bundle=federated_folder, data=place)
            with launch.open_bundle(settings) as opened:
                Services.open(settings, opened, config_of()).close()
            below = [place, *place.rglob("*")]
            assert len(below) > 5
            assert [str(p) for p in below if p.stat().st_mode & 0o077] == []
    finally:
        os.umask(before)


def test_without_noise_the_file_still_says_how_updates_are_clipped(
    federated_folder: Path, tmp_path: Path
) -> None:
    base = federation_config({"rounds": {"cohort": 5, "total": 30}}, epsilon=4.0, clip_norm=0.25)
    base = base.model_copy(update={"privacy": base.privacy.model_copy(update={"example_cap": 7})})
    found = federation_config({}, base=base, private=False)
    kept = found.privacy
    assert (kept.mechanism, kept.noise_multiplier, kept.clip_norm, kept.example_cap) == ("none", 0.0, 0.25, 7)
    with Bundle.open(federated_folder) as bundle:
        Services.open(ServerSettings(bundle=federated_folder, data=tmp_path), bundle, found).close()
    stored = launch.stored_config(ServerSettings(bundle=federated_folder, data=tmp_path))
    assert stored is not None
    refuse_others(stored, {}, file=("f", base.dump()), none=True)
    other = base.model_copy(update={"privacy": base.privacy.model_copy(update={"clip_norm": 3.0})})
    with pytest.raises(OtherSettingsError, match=r"privacy\.clip_norm"):
        refuse_others(stored, {}, file=("f", other.dump()), none=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epsilon": 1e6}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"epsilon": 20.1}, "epsilon"),
        ({"delta": 0.99}, "delta is 0.99"),
        ({"delta": 0.01}, "delta is 0.01"),
        ({"delta": 1e-320}, "delta is"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": 9e-4, "cohort": 500}, "not well below 1 / population"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": math.inf}, "clip_norm"),
        ({"clip_norm": 1e300}, "clip_norm"),
    ],
)
def test_options_that_nobody_would_call_private_make_no_federation(
    options: dict[str, float], says: str
) -> None:
    cohort = int(options.pop("cohort", 50))
    with pytest.raises(ConfigError, match=says):
        federation_config({"rounds": {"cohort": cohort, "total": 10}}, **options)


@pytest.mark.parametrize(
    ("privacy", "says"),
    [
        ({"noise_multiplier": 1e-9, "budget_epsilon": 8.0}, "first round costs epsilon 5e"),
        ({"noise_multiplier": 1e-9}, "hides nobody"),
        ({"noise_multiplier": 0.5}, "hides nobody"),
        ({"noise_multiplier": 1.0, "budget_epsilon": 1e9}, "budget guarantees nothing"),
        ({"mechanism": "local", "local_noise_multiplier": 1e-9}, "hides nobody"),
        ({"mechanism": "local", "local_noise_multiplier": 2.0, "budget_epsilon": 21.0}, "budget guarantees"),
    ],
)
def test_a_file_with_noise_that_hides_nobody_makes_no_federation(
    federated_folder: Path, tmp_path: Path, privacy: dict[str, Any], says: str
) -> None:
    fields = {"mechanism": "gaussian", "clip_norm": 1.0, "cohort": 50, "rounds": 50} | privacy
    config = federation_config({}, privacy=checked_privacy(fields))
    settings = ServerSettings(bundle=federated_folder, data=tmp_path)
    with Bundle.open(federated_folder) as bundle, pytest.raises(ConfigError, match=says):
        Services.open(settings, bundle, config)
    assert launch.stored_config(settings) is None
