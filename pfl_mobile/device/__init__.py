"""A device: takes part in federated rounds. The reference for the Kotlin and Swift clients.

    with Bundle.open("keyboard-bundle") as bundle, open_session(bundle) as session:
        model = Model.open(bundle, session)             # runs the golden batch
        with DeviceFolder("ann", model.id) as folder, Client("https://pfl.example.org") as client:
            Device(model, texts, folder, client).run(rounds=3)

``client`` and ``transfer`` speak the protocol, ``store`` keeps what must survive, ``pipeline`` makes an update of a
task, ``privacy`` says what must protect it, ``outbox`` sends it, ``device`` puts them together.
"""

from pfl_mobile.device.client import Client
from pfl_mobile.device.device import Device
from pfl_mobile.device.model import Model
from pfl_mobile.device.outbox import Summary
from pfl_mobile.device.privacy import PrivacyPolicy
from pfl_mobile.device.store import DeviceFolder

__all__ = ["Client", "Device", "DeviceFolder", "Model", "PrivacyPolicy", "Summary"]
