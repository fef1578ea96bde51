"""Devices answer: with an update, without one, and with how good the models are."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from starlette.requests import ClientDisconnect

from pfl_mobile.protocol.bodies import SAFETENSORS, Decline, EvaluationReport, UploadState
from pfl_server import problems
from pfl_server.identity.devices import DeviceIdentity
from pfl_server.services import Services, services
from pfl_server.uploads import decline as tasks
from pfl_server.uploads.path import UploadPath, upload_path
from pfl_server.uploads.receive import upload_head
from pfl_server.web.answers import responses
from pfl_server.web.auth import device

router = APIRouter(prefix="/v1/tasks/{task}", tags=["rounds"])

_Services = Annotated[Services, Depends(services)]
_Uploads = Annotated[UploadPath, Depends(upload_path)]
_Me = Annotated[DeviceIdentity, Depends(device)]
_Task = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="Id of the task.")]
_MOST = 2**53 - 1
_Offset = Annotated[
    int | None, Header(ge=0, le=_MOST, description="Where the body begins in the update; default: 0.")
]
_Whole = Annotated[
    int | None, Header(ge=0, le=_MOST, description="Bytes of the whole update; default: of the body.")
]
#: Part of HTTP itself, so no parameter of the document.
_Length = Annotated[int | None, Header(ge=0, le=_MOST, include_in_schema=False)]
_Key = Annotated[
    str | None,
    Header(
        pattern="^[!-~]{1,64}$",
        description="Names this update: a fresh UUID, the same for all requests that send it.",
    ),
]
_OVER = (problems.UnknownTask, problems.TaskExpired)
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The update, or the part of it from `Upload-Offset` on (see PROTOCOL.md, and "
        "`pfl_mobile/protocol/update_file.py`).",
        "content": {SAFETENSORS: {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _header(text: str, kind: str = "integer") -> dict[str, Any]:
    return {"description": text, "schema": {"type": kind}}


_ACCEPTED: dict[int | str, dict[str, Any]] = {
    200: {"description": "Accepted: stored, so that no crash loses it."},
    202: {"model": UploadState, "description": "A part is there; go on at `received`."},
}
_PROGRESS = {
    "Upload-Offset": _header("Bytes that are there."),
    "Upload-Length": _header("Bytes of the whole update; not there where it is not known yet."),
    "Upload-Complete": _header("`?1` once the update is accepted, else `?0`.", "string"),
}

_FOUND: dict[int | str, dict[str, Any]] = {200: {"description": "The progress.", "headers": _PROGRESS}}


@router.put(
    "/update",
    summary="Upload the update of a task",
    response_model=UploadState,
    responses=_ACCEPTED
    | responses(
        problems.Unauthorized,
        problems.DeviceRevoked,
        *_OVER,
        problems.RoundClosed,
        problems.TooStale,
        problems.KeyRequired,
        problems.KeyReused,
        problems.AlreadyUploaded,
        problems.OffsetMismatch,
        problems.LengthRequired,
        problems.BadUpdate,
        problems.WrongTensors,
        problems.WrongTask,
        problems.NotFinite,
        problems.NormTooLarge,
        problems.BadReport,
        body=True,
    ),
    openapi_extra=_BODY,
)
async def upload(
    request: Request,
    response: Response,
    task: _Task,
    me: _Me,
    uploads: _Uploads,
    idempotency_key: _Key = None,
    upload_offset: _Offset = None,
    upload_length: _Whole = None,
    content_length: _Length = None,
) -> Any:
    """The body is a canonical safetensors file, whole or from `Upload-Offset` on. What arrives before a connection
    breaks is kept: ask with `HEAD` and go on there, under the same `Idempotency-Key`. The same update sent again is
    accepted again (`duplicate`), and counted once.
    """
    head = upload_head(task, idempotency_key, upload_offset or 0, content_length, upload_length)

    def note(number: int) -> None:
        request.state.round = number

    try:
        state = await uploads.take(me, head, request.stream(), note)
    except ClientDisconnect:  # nobody is left to read an answer; what arrived is kept
        return Response(status_code=202)
    if state.status == "partial":
        response.status_code = 202
    return state


@router.head(
    "/update",
    summary="Ask how much of an upload is there",
    response_class=Response,
    responses=_FOUND | responses(problems.Unauthorized, problems.DeviceRevoked, *_OVER),
)
def progress(task: _Task, me: _Me, uploads: _Uploads, idempotency_key: _Key = None) -> Response:
    """Where to go on after a connection broke. With `Idempotency-Key`: of the upload under that key."""
    there, total, complete = uploads.progress(me, task, idempotency_key)
    headers = {
        "Upload-Offset": str(there),
        "Upload-Complete": "?1" if complete else "?0",
        "Cache-Control": "no-store",
    }
    if total is not None:
        headers["Upload-Length"] = str(total)
    return Response(headers=headers)


@router.post(
    "/decline",
    status_code=204,
    summary="Say that there will be no update",
    responses=responses(
        problems.Unauthorized, problems.DeviceRevoked, *_OVER, problems.AlreadyUploaded, body=True
    ),
)
def decline(request: Request, task: _Task, body: Decline, me: _Me, services: _Services) -> None:
    """Ends the task, so that its round need not wait for it. Again is fine."""
    request.state.round = tasks.decline(services, me, task, body)


@router.post(
    "/evaluation",
    status_code=204,
    summary="Report the quality of the models",
    responses=responses(
        problems.Unauthorized, problems.DeviceRevoked, problems.UnknownTask, problems.BadReport, body=True
    ),
)
def evaluation(request: Request, task: _Task, body: EvaluationReport, me: _Me, services: _Services) -> None:
    """Sums over the device's held-out labels; they are added to all others' of the version at once and not kept.
    Counted once for a task; again is fine.
    """
    request.state.round = tasks.evaluate(services, me, task, body)
