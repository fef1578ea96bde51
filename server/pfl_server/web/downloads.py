"""Files of tensors as answers."""

from __future__ import annotations

from fastapi import Response
from fastapi.responses import StreamingResponse

from pfl_mobile.protocol.bodies import SAFETENSORS
from pfl_server.problems import NotFound
from pfl_server.services import Services
from pfl_server.storage.models import Version


def tensors_response(on: Services, version: Version, if_none_match: str | None) -> Response:
    """The shared values of a version as a download.

    Raises:
        NotFound: they were removed (``versions_kept``).
    """
    etag, key = f'"{version.values_sha256}"', f"sets/{version.values_sha256}"
    size = on.blobs.size(key)
    if size is None:
        raise NotFound(
            f"the tensors of version {version.number} are no longer kept", mend="choose a newer version"
        )
    headers = {
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="version-{version.number}.safetensors"',
    }
    if if_none_match and etag in (part.strip().removeprefix("W/") for part in if_none_match.split(",")):
        return Response(status_code=304, headers=headers)
    headers["Content-Length"] = str(size)
    return StreamingResponse(on.blobs.read(key, 0, size), media_type=SAFETENSORS, headers=headers)
