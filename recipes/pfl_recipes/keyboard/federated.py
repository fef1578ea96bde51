"""The keyboard in a federation: a server and many devices, real processes that talk over real HTTP.

A small backbone is trained in one place and exported for Android. LoRA in its attention is shared, LoRA in its
feed-forward layers is each device's own. The devices train through the exported program.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pfl_exporters.export import export_bundle
from pfl_exporters.targets import target_of
from pfl_mobile.data import UserText, load, split
from pfl_mobile.engines import ENGINES
from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.files.atomic import PRIVATE, atomic_write, private_folder
from pfl_mobile.plan.optimizers import AdamW
from pfl_mobile.privacy import Gaussian, NoNoise, Unsampled
from pfl_mobile.privacy.calibration import required_noise, with_noise
from pfl_mobile.programs.deployment import Deployment, text_parts
from pfl_mobile.programs.tasks import TokenTask
from pfl_mobile.strategies import create
from pfl_mobile.strategies.state import Local, RoundContext
from pfl_mobile.text.vocabulary import MIN_USERS

from .plots import draw_rounds
from .processes import DeviceProcesses, Figures, Report, Seen, ended_in_order, loss, serving, top3
from .study import CONFIG, MESSAGES, Adapted, backbone, encoder_of

BATCH = 16
#: Passes over a device's messages in a round.
EPOCHS = 2
#: Fewest messages that make a device.
FEWEST = 40
#: L2 norm that updates are clipped to.
CLIP_NORM = 0.5
#: What the command prints as JSON first, in this order. Item i of ``global_top3`` is of the model that round i made,
#: item i of ``personalized_top3`` of the devices' own models after it; ``shipped_top3`` is of the time before round 0.
FIELDS = (
    "rounds",
    "global_top3",
    "personalized_top3",
    "epsilon",
    "bytes_up",
    "bytes_down",
    "failures",
    "engine",
    "devices",
    "seconds",
)


def people(text: UserText, devices: int, min_messages: int = 100) -> tuple[list[str], dict[str, list[str]]]:
    """Texts for the backbone, and the messages of each device, oldest first.

    Devices belong to users whom the backbone never sees. Where there are fewer of them than devices, a user has
    several: the newest ``MESSAGES`` messages are on the first, those before on the second, and so on.

    Raises:
        DataError: there are too few messages.
    """
    parts = split(text, min_messages=min_messages)
    found: dict[str, list[str]] = {}
    most = max(len(text.users[user]) for user in parts.test)
    for turn in range(-(-most // MESSAGES)):
        for user in parts.test:
            messages = text.texts(user)
            end = len(messages) - turn * MESSAGES
            mine = messages[max(end - MESSAGES, 0) : max(end, 0)]
            if len(mine) >= FEWEST and len(found) < devices:
                found[f"{user}-{turn + 1}"] = mine
    if len(found) < devices:
        words = text.words_left_out()
        raise DataError(
            f"{text.name} has messages of held-out users for {len(found)} devices with {FEWEST} messages or more, not "
            f"for {devices}{words and f'; {words}'}",
            mend="ask for fewer devices (--devices) or give more data",
        )
    return list(parts.train.all_texts()), found


def deployment(known: UserText, min_users: int = MIN_USERS) -> Deployment:
    """The keyboard with what a device does in a round.

    Args:
        known: users that the backbone learns from.
        min_users: users that a word of the vocabulary needs.

    Raises:
        TooFewUsersError: there are fewer.
    """
    encoder = encoder_of(known, min_users)
    model = Adapted(backbone(encoder, list(known.all_texts())))()
    local = Local(epochs=EPOCHS, optimizer=AdamW(lr=2e-3, weight_decay=0.0), clip=1.0)
    return Deployment(
        name="keyboard-federated",
        model=model,
        task=TokenTask(CONFIG.vocabulary),
        plan=create("fedper").plan(RoundContext(model.device_tensors(), local)),
        limits={"max_examples": MESSAGES},
        **text_parts(encoder, BATCH),
    )


def privacy(devices: int, rounds: int, epsilon: float) -> Gaussian:
    """Gaussian noise that costs ``epsilon`` over all rounds when every device takes part in each of them."""
    config = Gaussian(
        clip_norm=CLIP_NORM,
        noise_multiplier=1.0,
        cohort=devices,
        rounds=rounds,
        participation=Unsampled(max_participations=rounds),
        delta=min(1e-3, 0.1 / devices),
        budget_epsilon=epsilon,
    )
    return with_noise(config, required_noise(config, epsilon))


def run(
    data: str = "sotu",
    devices: int = 40,
    rounds: int = 5,
    out: str | Path | None = None,
    *,
    engine: str = "executorch",
    epsilon: float | None = 8.0,
    min_users: int = MIN_USERS,
    min_messages: int = 100,
    report: Report | None = None,
    on_round: Callable[[Figures], None] = lambda _figures: None,
) -> dict[str, Any]:
    """Run a federation from the backbone to the page.

    Args:
        data: dataset name or JSONL file.
        devices: how many; all take part in every round.
        rounds: how many.
        out: folder for everything; by default ``out/federated-<dataset>``. What an earlier run left is replaced.
        engine: of the devices.
        epsilon: budget over all rounds; None: no noise, which the devices then allow.
        min_users: users that a word of the vocabulary needs, as every device gets it.
        min_messages: that a user needs to have a device.
        report: told about progress.
        on_round: told every round's figures.

    Returns:
        The fields of :data:`FIELDS`, then further figures.

    Raises:
        EngineUnavailableError: no such engine.
        ConfigError: no target is for the engine, or a number makes no sense.
        DataError: too few messages.
        DeviceError: a process failed; its log is named.
    """
    target, runtime = target_of(engine), ENGINES.find(engine).runtime
    if devices < 2 or rounds < 1:
        raise ConfigError(
            f"{devices} devices and {rounds} rounds", mend="give at least 2 devices and 1 round"
        )
    say = report or (lambda _what, _fraction: None)
    seconds: dict[str, float] = {}
    clock = began = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal clock
        seconds[step], clock = round(time.perf_counter() - clock, 1), time.perf_counter()

    say("load the data and train the backbone, where that was not done before", None)
    text = load(data)
    _, mine = people(text, devices, min_messages)
    train = split(text, min_messages=min_messages).train
    on_devices = sum(len(texts) for texts in mine.values())
    unused = text.messages - train.messages - on_devices
    model = deployment(train, min_users)
    lap("backbone")
    folder = Path(out or f"out/federated-{Path(data).stem}").absolute()
    private_folder(folder, ours=("messages.jsonl", "devices", "server"))
    for part in ("bundle", "server", "devices"):
        shutil.rmtree(folder / part, ignore_errors=True)
    export_bundle(model, [target.name], folder / "bundle", report=lambda what: say(what, None))
    lap("export")
    config = None if epsilon is None else privacy(devices, rounds, epsilon)
    _write_settings(folder, mine, devices, rounds, config)
    say("start the server", None)
    with ended_in_order(), serving(folder) as server:
        with DeviceProcesses(
            folder, server.url, engine, runtime, delta=None if config is None else config.delta
        ) as fleet:
            fleet.start_all(list(mine), say)
            lap("start")
            figures = fleet.watch(rounds, say, on_round)
        lap("rounds")
        latest = server.ask("/v1/versions/latest")
    results = [_result(folder, name) for name in mine]
    found = _summary(figures, fleet, results, latest, rounds)
    found |= {"engine": engine, "devices": devices, "seconds": round(time.perf_counter() - began, 1)}
    found = {name: found[name] for name in FIELDS} | found
    found |= {"steps_seconds": seconds, "dataset": data, "memory_mb": fleet.memory_mb}
    found |= {
        "left_out": text.counts_left_out(),
        "messages_on_devices": on_devices,
        "messages_unused": unused,
    }
    found["report"] = str(_page(folder, found, config))
    return found


def _write_settings(
    folder: Path, mine: dict[str, list[str]], devices: int, rounds: int, config: Gaussian | None
) -> None:
    from pfl_server.federation.config import FederationConfig, RoundsConfig
    from pfl_server.settings import LimitsConfig

    lines = [
        json.dumps({"user": user, "text": message, "time": i})
        for user, messages in mine.items()
        for i, message in enumerate(messages)
    ]
    atomic_write(folder / "messages.jsonl", ("\n".join(lines) + "\n").encode(), mode=PRIVATE)
    federation = FederationConfig(
        rounds=RoundsConfig(
            total=rounds,
            cohort=devices,
            minimum=max(1, devices // 2),
            deadline_s=180.0,
            retry_s=1.0,
        ),
        privacy=config or NoNoise(clip_norm=CLIP_NORM, cohort=devices),
    )
    atomic_write(folder / "federation.json", federation.dump().encode())
    # All devices have one address here.
    limits = LimitsConfig(
        enrol_rate=100.0, enrol_burst=2 * devices + 10, address_rate=100.0, address_burst=1000
    )
    atomic_write(folder / "limits.json", limits.model_dump_json().encode())


def _result(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "devices" / name / "summary.json"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = {}
    return found


def _summary(
    seen: Seen, fleet: DeviceProcesses, results: list[dict[str, Any]], latest: dict[str, Any], rounds: int
) -> dict[str, Any]:
    made, own = range(1, latest["version"] + 1), seen.own()
    ended_badly = sum(code != 0 for code in fleet.codes.values())
    declined = sum(sum(r.get("declined", {}).values()) for r in results)
    dropped = sum(r.get("dropped", 0) for r in results)
    return {
        "rounds": latest["version"],
        "global_top3": [top3(seen.shared.get(v, {})) for v in made],
        "personalized_top3": [top3(own.get(v, {})) for v in made],
        "global_loss": [loss(seen.shared.get(v, {})) for v in made],
        "personalized_loss": [loss(own.get(v, {})) for v in made],
        "epsilon": latest["privacy"].get("epsilon"),
        "bytes_up": sum(r.get("bytes_up", 0) for r in results),
        "bytes_down": sum(r.get("bytes_down", 0) for r in results),
        "failures": ended_badly + declined + dropped + rounds - latest["version"],
        "shipped_top3": top3(seen.shared.get(0, {})),
        "shipped_loss": loss(seen.shared.get(0, {})),
        "delta": latest["privacy"].get("delta"),
        "privacy": latest["privacy"],
        "updates": sum(r.get("rounds", 0) for r in results),
        "failed_devices": ended_badly,
        "declined": declined,
        "dropped": dropped,
    }


def _page(folder: Path, found: dict[str, Any], config: Gaussian | None) -> Path:
    atomic_write(folder / "report.json", json.dumps(found, indent=1).encode())
    draw_rounds(folder / "rounds.png", found)
    lines = [
        f"# Keyboard federation on {found['dataset']}: {found['devices']} devices, {found['rounds']} rounds",
        "",
        f"Server and devices are processes that talk over HTTP. Each device trains through {found['engine']}; LoRA in "
        "the attention is shared, LoRA in the feed-forward layers stays on the device. The devices belong to users "
        f"whom the backbone never saw; each has at most {MESSAGES} consecutive messages of one of them, the newest "
        "fifth of which is only tested on. Recall in percent, over all test labels of all devices.",
        "",
        f"Before the first round: top-3 {found['shipped_top3']:.2f}, loss {found['shipped_loss']:.3f} (mean over "
        "devices).",
        "",
        "| round | shared model after it: top-3 | loss | own models after it: top-3 | loss |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    columns = [found[f"{what}_{name}"] for what in ("global", "personalized") for name in ("top3", "loss")]
    lines += [
        f"| {number} | {a:.2f} | {b:.3f} | {c:.2f} | {d:.3f} |"
        for number, (a, b, c, d) in enumerate(zip(*columns, strict=False), 1)
    ]
    lines += ["", "![recall over the rounds](rounds.png)", "", _privacy_words(found, config), ""]
    lines += [
        f"{found['updates']} updates were accepted; {found['bytes_up'] / 1e6:.2f} MB went up and "
        f"{found['bytes_down'] / 1e6:.2f} MB down in all. Failures: {found['failures']} ({found['declined']} tasks "
        f"declined, {found['dropped']} updates dropped, {found['failed_devices']} devices failed). "
        f"{found['seconds']:.0f} s in all.",
        "",
    ]
    path = folder / "report.md"
    atomic_write(path, "\n".join(lines).encode())
    return path


def _privacy_words(found: dict[str, Any], config: Gaussian | None) -> str:
    if config is None:
        return "Nothing protects the updates: this run was made with --no-privacy."
    return (
        f"Privacy: epsilon {found['epsilon']:.3g} at delta {found['delta']:g} for each device over all rounds. "
        f"Gaussian noise of {config.noise_multiplier:.3g} times the clip norm {config.clip_norm:g} is added to the "
        "sum of a round; every device takes part in every round, so sampling hides nothing. With so few devices a "
        "small epsilon costs much accuracy; with thousands the same noise weighs little. The sums in evaluation "
        "reports are not covered."
    )
