"""What a device tells: names and plain values that a log or an app can keep."""

from __future__ import annotations

import inspect
import json
from typing import Any, get_type_hints

import pytest

from pfl_mobile.device import events
from pfl_mobile.device.events import Event

EVENTS = sorted(
    (e for e in vars(events).values() if inspect.isclass(e) and issubclass(e, Event) and e is not Event),
    key=lambda e: e.__name__,
)
#: Names of the events in logs. Scripts read them: one that changes breaks what reads the logs.
NAMES = [
    "assigned",
    "declined",
    "downloaded",
    "dropped",
    "finished",
    "joined",
    "measured",
    "offline",
    "reported",
    "stepped",
    "uploaded",
    "waiting",
]


def example(event: type[Event]) -> dict[str, Any]:
    """A value of each field's type."""
    values = {int: 3, float: 0.5, str: "a", bool: True}
    return {name: values.get(kind, {"loss": 0.25}) for name, kind in get_type_hints(event).items()}


def test_names_in_logs_stay() -> None:
    assert [event(**example(event)).to_json()["event"] for event in EVENTS] == NAMES


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_a_line_of_json_with_all_its_fields(event: type[Event]) -> None:
    given = example(event)
    line = event(**given).to_json()
    name = line.pop("event")
    assert line == given
    assert json.loads(json.dumps(line | {"event": name})) == line | {"event": name}


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_holds_numbers_and_words_but_no_arrays_or_bytes(event: type[Event]) -> None:
    assert {str(kind) for kind in get_type_hints(event).values()} <= {
        "<class 'int'>",
        "<class 'float'>",
        "<class 'str'>",
        "<class 'bool'>",
        "collections.abc.Mapping[str, float]",
    }


def test_a_name_of_two_words_is_joined_by_an_underscore() -> None:
    class BatteryLow(Event): ...

    assert BatteryLow().to_json() == {"event": "battery_low"}
