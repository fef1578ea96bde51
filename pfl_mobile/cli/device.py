"""``pfl device``: one real device that takes part in a federation."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from pfl_mobile.cli.bundles import Engine, Key, open_bundle
from pfl_mobile.cli.common import (
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    OK,
    Json,
    Reporter,
    console,
    interruptible,
    percent,
    print_json,
    show_left_out,
    size,
)
from pfl_mobile.cli.users import Source, unused_words, user_examples
from pfl_mobile.errors import ConfigError, DeviceError, NoExamplesError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pfl_mobile.device.events import Event
    from pfl_mobile.device.outbox import Summary


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "device",
        epilog="Examples:  pfl device --server http://127.0.0.1:8800 --bundle keyboard-bundle --data nus-sms "
        "--user 51 --state ann --rounds 3;  pfl device --server http://127.0.0.1:8800 --bundle activity-bundle "
        "--data wisdm --user 12.  " + EXIT_CODES,
    )(device)


def device(
    server: Annotated[str, typer.Option("--server", metavar="URL", help="Address of the aggregator.")],
    bundle: Annotated[
        Path, typer.Option("--bundle", metavar="B", help="The federation's bundle: folder or .pflb file.")
    ],
    data: Source,
    user: Annotated[
        str, typer.Option("--user", metavar="ID", help="A user of the data: whose device this is.")
    ],
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="What the device keeps: credential, personal state, queue; of one user; default: "
            "./pfl-device-USER.",
        ),
    ] = None,
    engine: Engine = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, metavar="N", help="End after N accepted updates.")
    ] = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Check in once, do the task if there is one, and end; wait for none."),
    ] = False,
    token: Annotated[
        str | None,
        typer.Option("--token", metavar="T", envvar="PFL_ENROLMENT_TOKEN", help="For enrolment."),
    ] = None,
    group: Annotated[str, typer.Option("--group", metavar="NAME", help="The device's group.")] = "",
    allow_no_privacy: Annotated[
        bool,
        typer.Option(
            "--allow-no-privacy", help="Send updates also where no clipping and noise protect them."
        ),
    ] = False,
    only_local_noise: Annotated[
        bool,
        typer.Option(
            "--only-local-noise",
            help="Trust no aggregator: send updates only under this device's own noise, whatever noise the "
            "aggregator says it adds, and no reports; at least --min-noise, at most --max-epsilon.",
        ),
    ] = False,
    min_noise: Annotated[
        float,
        typer.Option(
            "--min-noise",
            metavar="Z",
            help="Decline where this device's own noise would be less, relative to the clip norm.",
        ),
    ] = 0.0,
    max_epsilon: Annotated[
        float | None,
        typer.Option(
            "--max-epsilon",
            metavar="E",
            help="Decline where epsilon would be larger with the update; at most 20; default: 10.",
        ),
    ] = None,
    max_delta: Annotated[
        float | None,
        typer.Option(
            "--max-delta",
            metavar="D",
            help="Largest delta of the aggregator's guarantee, and that for which this device computes the epsilon of "
            "its own noise; default: 1e-6.",
        ),
    ] = None,
    no_report: Annotated[
        bool,
        typer.Option("--no-report", help="Send no evaluation reports; refuse tasks that ask for numbers."),
    ] = False,
    test: Annotated[
        float,
        typer.Option("--test", min=0.01, max=0.99, help="Share of the examples, the newest, to test on."),
    ] = 0.2,
    patience: Annotated[
        float,
        typer.Option("--patience", metavar="S", help="Seconds that the aggregator may be out of reach."),
    ] = 600.0,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="PEM", help="Trust only these authorities for HTTPS.")
    ] = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Permit plain HTTP to another machine.")
    ] = False,
    events: Annotated[
        Path | None,
        typer.Option("--events", metavar="FILE", help="Append what happens, one JSON object a line."),
    ] = None,
    public_key: Key = None,
    as_json: Json = False,
) -> int:
    """Take part in a federation as one device: enrol, check in, train by the plan, send the clipped change.

    The newest part of the examples (--test) is never trained on; how good the models are on it is reported as sums.
    The personal state stays here, and the guard adopts it only where it is better. Nothing is sent where nothing
    protects it (exit code 1). Killed or cut off at any moment, the same command goes on. What may pass (no connection,
    a proxy without its server) is tried for --patience seconds; where something else than the aggregator answers
    (a wrong certificate, scheme or port, a redirect, a sign-in page), the command ends at once (exit code 2), unless it
    has heard from the aggregator before and no longer does: then the network may have changed, and that may pass too.

    JSON: ended, rounds, declined (by reason), dropped, bytes_up, bytes_down, version, shared (metrics of the newest
    shared values on the test part, when the federation is finished), left_out (messages of the source that are no
    examples, by reason), unused (examples older than what the bundle keeps, texts with no_words or unknown_words only).
    """
    if rounds is not None and once:
        raise ConfigError("--rounds and --once contradict each other", mend="give one of them")
    from pfl_mobile.device.client import Client
    from pfl_mobile.device.device import Device
    from pfl_mobile.device.model import Model
    from pfl_mobile.device.privacy import PrivacyPolicy
    from pfl_mobile.device.store import DeviceFolder
    from pfl_mobile.engines import open_session
    from pfl_mobile.local.evaluation import text_encoder, unusable
    from pfl_mobile.local.parts import count_examples, parts
    from pfl_mobile.privacy.limits import DEVICE_DELTA, DEVICE_EPSILON

    policy = PrivacyPolicy(
        require=not allow_no_privacy,
        only_local=only_local_noise,
        min_noise=min_noise,
        max_epsilon=DEVICE_EPSILON if max_epsilon is None else max_epsilon,
        max_delta=DEVICE_DELTA if max_delta is None else max_delta,
        report=not no_report,
    )
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(Reporter())
        opened = stack.enter_context(open_bundle(bundle, public_key))
        examples, left_out = user_examples(opened, data, user, report)
        report("load the programs and run the golden batch")
        session = stack.enter_context(open_session(opened, engine))
        model = Model.open(opened, session)
        place = state or Path("pfl-device-" + re.sub(r"[^\w.-]", "_", user))
        folder = stack.enter_context(DeviceFolder(place, model.id, user))
        log = None if events is None else stack.enter_context(_opened(events))
        cancel = stack.enter_context(interruptible(report))
        client = stack.enter_context(
            Client(server, ca=None if ca is None else str(ca), allow_http=allow_http, cancel=cancel)
        )
        enough = count_examples(examples) > 1  # with fewer the device declines
        older = parts(examples, test=test, most=model.most).older if enough else 0
        unused = {"older": older} | unusable(examples, text_encoder(opened))
        for words in unused_words(unused):
            report.note(words)
        taking_part = Device(
            model,
            examples,
            folder,
            client,
            policy=policy,
            test=test,
            group=group,
            token=token,
            on_event=_teller(report, log),
            patience_s=patience,
        )
        try:
            summary = taking_part.run(rounds, once=once)
        except DeviceError:
            if waiting := len(folder.pending()[0]):
                report.note(
                    f"{waiting} finished in {place}, which the same command sends while its task lasts"
                )
            raise
        newest = _newest(taking_part.measure) if summary.ended == "done" else {}
    _show(summary, newest | {"left_out": left_out, "unused": unused}, as_json)
    if not as_json:
        show_left_out(left_out)
    return {"cancelled": INTERRUPTED, "privacy": FAILED}.get(summary.ended, OK)


def _opened(path: Path) -> IO[str]:
    from pfl_mobile.files.atomic import disk_errors, open_private

    with disk_errors(path):
        return open(path, "a", encoding="utf-8", opener=open_private)


def _newest(measure: Callable[[], Any]) -> dict[str, Any]:
    """The newest shared values, measured; nothing where this user has nothing to measure on."""
    try:
        found = measure()
    except NoExamplesError:
        return {}
    return {"version": found.version, "shared": dict(found.shared)}


def _teller(report: Reporter, log: IO[str] | None) -> Callable[[Event], None]:
    """Shows events, and writes those that matter to the log."""
    from pfl_mobile.device import events as kinds

    def tell(event: Event) -> None:
        if log is not None and not isinstance(event, kinds.Stepped):
            log.write(json.dumps(event.to_json()) + "\n")
            log.flush()
        if isinstance(event, kinds.Stepped):
            report(
                f"train, step {event.step}/{event.of}, loss {event.loss:.3f}", event.step / max(event.of, 1)
            )
        elif isinstance(event, kinds.Waiting):
            report(f"wait, {event.seconds:.0f} s, {event.reason.replace('_', ' ')}")
        elif isinstance(event, kinds.Offline):
            report(f"offline: {event.why}")
        else:
            report.note(_words(event))

    return tell


def _words(event: Event) -> str:
    from pfl_mobile.device import events as kinds

    match event:
        case kinds.Joined(again=again):
            return "the device is enrolled" + (" (it was before)" if again else "")
        case kinds.Assigned(round=number, version=version):
            return f"round {number}: a task, from version {version}"
        case kinds.Downloaded(name=name, bytes=count, cached=cached):
            return f"  {name}: {size(count)}" + (", here already" if cached else "")
        case kinds.Finished():
            clipped = ", clipped" if event.clipped else ""
            measured = ", ".join(
                f"{name} {percent(event.before, name)} -> {percent(event.after, name)}"
                for name in event.before
                if name in event.after
            )
            own = (
                "new personal state"
                if event.status == "adopted"
                else "the guard keeps the old personal state"
            )
            return (
                f"  {event.steps} steps in {event.seconds:.1f} s, change of norm {event.norm:.3g}{clipped}; "
                f"{own} (for the guard: {measured or 'not measured'})"
            )
        case kinds.Uploaded(bytes=count):
            return f"  sent {size(count)}"
        case kinds.Reported():
            name = _main(event.shared)
            return f"  {name} on the test part: shared {percent(event.shared, name)}, own " + percent(
                event.personalized, name
            )
        case kinds.Declined():
            return f"  declined ({event.reason}): {event.why}"
        case kinds.Dropped():
            return f"  {event.what} dropped: {event.why}"
        case kinds.Measured():
            name = _main(event.shared)
            return f"version {event.version}: {name} {percent(event.shared, name)} on the test part"
    return json.dumps(event.to_json())


def _main(metrics: Mapping[str, float]) -> str:
    return next((name for name in ("top3", "top1", "loss") if name in metrics), next(iter(metrics)))


def _show(summary: Summary, newest: dict[str, Any], as_json: bool) -> None:
    found = summary.to_json() | newest
    if as_json:
        print_json(found)
        return
    ended = {
        "rounds": "as many rounds as asked for",
        "done": "the federation trains no more",
        "once": "checked in once",
        "until": "ended",
        "privacy": "the federation protects updates less than this device asks for; nothing was sent",
        "cancelled": "stopped; the same command goes on",
    }[summary.ended]
    console().print(
        f"{ended}: {summary.rounds} updates accepted, {sum(summary.declined.values())} tasks declined, "
        f"{summary.dropped} updates dropped, {size(summary.bytes_up)} up, {size(summary.bytes_down)} down",
        markup=False,
    )
