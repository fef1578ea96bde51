"""The federated demo: real processes, on text that is made up and a backbone that is hardly trained."""

from __future__ import annotations

import json
import types
from dataclasses import replace

import pytest

from pfl_mobile.cli import main
from pfl_mobile.data import UserText, split
from pfl_mobile.data.usertext import Message
from pfl_mobile.errors import DataError, PflError, TooFewUsersError
from pfl_mobile.plan.schema import Plan
from pfl_recipes.keyboard import federated, study
from pfl_recipes.keyboard.processes import Seen

WORDS = ["see", "you", "at", "the", "bus", "tonight", "cat", "is", "late", "ok", "feed", "now"]


def messages(user, count):
    """No two are equal, and each user has a favourite word."""
    own = WORDS[user % len(WORDS)]
    return [
        f"{own} {WORDS[i % 12]} {own} {WORDS[i // 12 % 12]} {WORDS[i // 144 % 12]} {own}"
        for i in range(count)
    ]


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(study, "TRAIN", replace(study.TRAIN, epochs=1, max_steps=10))
    path = tmp_path / "messages.jsonl"
    lines = [
        json.dumps({"user": f"u{user}", "text": text, "time": i})
        for user in range(6)
        for i, text in enumerate(messages(user, 260))
    ]
    path.write_text("\n".join(lines))
    return path


def made_up():
    found = {f"u{u}": [Message(m, float(i)) for i, m in enumerate(messages(u, 260))] for u in range(6)}
    return UserText("made up", found)


def test_devices_have_stretches_of_held_out_users():
    text = made_up()
    known, mine = federated.people(text, 5)
    assert len(mine) == 5
    assert len(known) == 3 * 260
    assert all(len(found) == 120 for found in list(mine.values())[:3])
    newest = messages(int(next(iter(mine))[1]), 260)[-120:]
    assert next(iter(mine.values())) == newest
    sentences = [sentence for found in mine.values() for sentence in found]
    assert not set(sentences) & set(known)
    with pytest.raises(DataError, match="6 devices"):
        federated.people(text, 7)


def test_a_few_users_make_no_vocabulary_for_everybody():
    with pytest.raises(TooFewUsersError, match="learned from 3 users"):
        federated.deployment(split(made_up()).train)


def test_privacy_costs_what_is_asked_for():
    config = federated.privacy(40, 5, 8.0)
    assert (config.max_participations, config.budget_epsilon, config.delta) == (5, 8.0, 1e-3)
    assert config.noise_multiplier > 0.9


def told(seen, number, base, *reports):
    """Devices report in a round that began with a version: weight, recall of that version, and of their own models."""
    for device, (weight, shared, own) in enumerate(reports):
        seen.add(str(device), {"event": "assigned", "round": number, "version": base})
        report = {"event": "reported", "round": number, "weight": weight}
        report |= {"shared": {"top3": shared, "loss": 4.0}, "personalized": {"top3": own, "loss": 3.0}}
        seen.add(str(device), report)


def test_figures_are_over_all_labels():
    seen = Seen()
    told(seen, 3, 2, (30.0, 0.1, 0.5), (10.0, 0.1, 0.2))
    assert not seen.over(3, 3)
    assert seen.over(3, 2)
    found = seen.figures(3)
    assert (found.devices, found.personalized) == (2, pytest.approx(42.5))


def test_the_figures_of_a_round_are_of_the_model_it_made():
    seen = Seen()
    told(seen, 0, 0, (10.0, 0.1, 0.5))
    told(seen, 1, 1, (10.0, 0.2, 0.6))
    told(seen, 2, 1, (10.0, 0.2, 0.65))  # round 1 was not merged
    seen.add("0", {"event": "measured", "version": 2, "weight": 10.0, "shared": {"top3": 0.3, "loss": 4.0}})
    assert [seen.figures(n).shared for n in range(3)] == pytest.approx([20.0, 20.0, 30.0])
    fleet = types.SimpleNamespace(codes={})
    latest = {"version": 2, "privacy": {}}
    found = federated._summary(seen, fleet, [], latest, 2)
    assert found["shipped_top3"] == pytest.approx(10.0)
    assert found["global_top3"] == pytest.approx([20.0, 30.0])
    assert found["personalized_top3"] == pytest.approx([50.0, 65.0])


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"engine": "litert"}, "no engine is called 'litert'"), ({"devices": 1}, "1 devices")],
)
def test_settings_that_make_no_sense_are_refused(settings, what):
    with pytest.raises(PflError, match=what):
        federated.run("sotu", **settings)


@pytest.mark.slow
def test_server_and_devices_run_as_processes(source, tmp_path, capfd):
    arguments = [
        "demo",
        "federated",
        "--devices",
        "3",
        "--rounds",
        "2",
        "--data",
        source,
        "--out",
        tmp_path / "out",
    ]
    arguments += ["--min-users", "3", "--engine", "onnxruntime", "--json"]
    assert main([str(a) for a in arguments]) == 0
    found = json.loads(capfd.readouterr().out)
    assert list(found)[: len(federated.FIELDS)] == list(federated.FIELDS)
    assert (found["rounds"], found["failures"], found["updates"]) == (2, 0, 6)
    assert len(found["global_top3"]) == len(found["personalized_top3"]) == 2
    assert found["shipped_loss"] != found["global_loss"][0] != found["global_loss"][1]
    assert found["epsilon"] == pytest.approx(8.0, abs=0.1)
    assert found["bytes_up"] > 6 * 4 * 2048
    plan = Plan.load((tmp_path / "out" / "bundle" / "plan.json").read_text())
    assert plan.upload == ("role:shared",)
    for name in ("report.md", "rounds.png", "report.json"):
        assert (tmp_path / "out" / name).stat().st_size > 0
