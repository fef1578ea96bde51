"""Our server with devices that are about to upload.

python -m serve.ours prepare FOLDER SIZE_MB DEVICES     a bundle, a federation, enrolled devices with tasks
python -m serve.ours run FOLDER PORT                    serve it
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

#: Values of the layer whose factors are uploaded, so that a rank of 1 is 1,000 values.
_IN, _OUT = 400, 600


def prepare(folder: Path, size_mb: float, devices: int) -> None:
    """Write ``bundle``, ``data`` and ``tasks.json``: the credential and the body's head of each device's upload."""
    import numpy as np
    import torch
    from starlette.testclient import TestClient
    from torch import nn

    from pfl_exporters.export import export_bundle
    from pfl_mobile import ClassificationTask, Deployment, LoRA, Plan, Sgd, TrainPhase, personalize
    from pfl_mobile.bundle import Bundle
    from pfl_mobile.privacy import NoNoise
    from pfl_mobile.protocol.bodies import UpdateHead
    from pfl_mobile.protocol.update_file import canonical, encode
    from pfl_server.app import create_app
    from pfl_server.federation.config import FederationConfig, RoundsConfig
    from pfl_server.services import Services

    rank = round(size_mb * 1e6 / 4 / (_IN + _OUT))
    backbone = nn.Sequential(nn.Linear(_IN, _OUT)).eval()
    batch = {"x": torch.randn(4, _IN), "labels": torch.zeros(4, dtype=torch.int64), "weight": torch.ones(4)}
    model = personalize(backbone, [LoRA("0", rank=rank)], roles={"lora": "shared"}, example=(batch["x"],))
    plan = Plan(phases=(TrainPhase(epochs=1, optimizer=Sgd(lr=0.1)),), upload=("role:shared",))
    deployment = Deployment("upload", model, ClassificationTask(_OUT), batch, plan)
    export_bundle(deployment, ["torch"], folder / "bundle")
    config = FederationConfig(
        rounds=RoundsConfig(cohort=devices + 1, minimum=1, over_selection=2.0, deadline_s=86400.0),
        privacy=NoNoise(clip_norm=1.0, cohort=devices + 1),
    )
    with Bundle.open(folder / "bundle") as bundle:
        services = Services.open(_settings(folder, 0), bundle, config)
        with TestClient(create_app(services, coordinate=True)) as client:
            tasks = []
            known = client.get("/v1/federation").json()["bundle"]
            for _ in range(devices):
                credential = client.post("/v1/devices", json={"bundle": known}).json()["credential"]
                bearer = {"Authorization": f"Bearer {credential}"}
                answer = _task(client, bearer, known)
                layout = canonical({t["name"]: tuple(t["shape"]) for t in answer["layout"]})
                head = UpdateHead(
                    task=answer["id"], round=answer["round"], version=answer["version"], examples=10, steps=1
                )
                zeros = {n: np.zeros(s, np.float32) for n, s in layout.shapes.items()}
                data = encode(head, zeros, layout)
                header = data[: len(data) - 4 * layout.size].decode()
                tasks.append({"url": answer["update_url"], "credential": credential, "header": header})
    found = {"values": layout.size, "tasks": tasks, "check_in": {"bundle": known, "examples": 10}}
    (folder / "tasks.json").write_text(json.dumps(found))


def _task(client: object, bearer: dict[str, str], known: dict[str, str]) -> dict[str, object]:
    import time

    for _ in range(100):
        answer = client.post("/v1/check-in", json={"bundle": known, "examples": 10}, headers=bearer).json()  # type: ignore[attr-defined]
        if answer["status"] == "task":
            return dict(answer["task"])
        time.sleep(0.1)  # the first round is being opened
    raise SystemExit(f"no task for a device: {answer}")


def _settings(folder: Path, port: int) -> object:
    from pfl_server.settings import LimitsConfig, ServerSettings

    plenty = dict.fromkeys(("device_burst", "address_burst", "enrol_burst"), 10**6)
    rates = dict.fromkeys(("device_rate", "address_rate", "enrol_rate"), 1000000.0)
    return ServerSettings(
        bundle=folder / "bundle",
        data=folder / "data",
        enrolment="open",
        port=port,
        limits=LimitsConfig(**plenty, **rates),
    )


def run(folder: Path, port: int) -> None:
    """Serve as ``pfl serve`` does, until the process is ended. Nothing is merged: uploads are what is measured."""
    from pfl_mobile.bundle import Bundle
    from pfl_server import launch
    from pfl_server.counting import logs
    from pfl_server.services import Services

    logs.set_up()
    with Bundle.open(folder / "bundle") as bundle:
        settings = _settings(folder, port)
        launch.run(settings, bundle, Services.open(settings, bundle), launch.listen(settings))  # type: ignore[arg-type]


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
    else:
        run(Path(sys.argv[2]), int(sys.argv[3]))
