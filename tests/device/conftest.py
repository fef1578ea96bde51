from __future__ import annotations

import random
from contextlib import contextmanager

import pytest

from pfl_mobile.device.backoff import Backoff
from pfl_mobile.device.client import Client
from pfl_mobile.device.device import Device
from pfl_mobile.device.model import Model
from pfl_mobile.device.store import DeviceFolder
from pfl_mobile.local.state import ModelId
from tests.device.fake_server import Fake, serving
from tests.local.fake import Linear, linear_rows

ID = ModelId.of("linear", "1", Linear.tensors)
QUICK = Backoff(attempts=4, first_s=0.001, most_s=0.01)


def linear_model(session=None):
    session = session or Linear()
    return Model(ID, session, session.tensors, session.initial(), engine="fake")


@pytest.fixture
def fake():
    return Fake({"name": ID.name, "version": ID.version, "fingerprint": ID.fingerprint})


@pytest.fixture
def address(fake):
    with serving(fake) as found:
        yield found


@contextmanager
def device(folder, address, *, session=None, examples=None, backoff=QUICK, **settings):
    """A device with a tiny model; its events are in ``device.events``."""
    model = linear_model(session)
    seen = []
    with (
        DeviceFolder(folder, model.id) as opened,
        Client(address, backoff=backoff, timeout_s=5.0) as client,
    ):
        client._draw = random.Random(0)
        found = Device(
            model,
            linear_rows(60) if examples is None else examples,
            opened,
            client,
            on_event=seen.append,
            **{"patience_s": 5.0, **settings},
        )
        found.events = seen
        yield found


def names(found):
    return [type(event).__name__ for event in found.events if type(event).__name__ != "Stepped"]
