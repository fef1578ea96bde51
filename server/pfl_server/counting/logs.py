"""Logs as JSON lines on standard error, without personal data.

What is logged names no device, address, path or credential: requests appear by route
(``/v1/tasks/{task}/update``) with a random request id. As a second line of defence, anything that looks like a
credential or an id is blotted out.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from pfl_server.identity.credentials import SECRET_PATTERN

if TYPE_CHECKING:
    from typing import TextIO

#: Ids of devices and tasks. Request ids are shorter, digests of tensors longer.
_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_PASSWORD = re.compile(r"(://[^/:@\s]+:)[^@\s]+@")
#: What every `logging.LogRecord` has; other attributes are a line's own fields.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a record: ``time`` (UTC), ``level``, ``logger``, ``event`` and the fields given as ``extra``."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {k: v for k, v in vars(record).items() if k not in _STANDARD and not k.startswith("_")}
        if record.exc_info:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return blot_out(json.dumps(line, default=str, ensure_ascii=False))


def blot_out(text: str) -> str:
    """``text`` without what could name a device or let one in."""
    text = SECRET_PATTERN.sub("[credential]", text)
    text = _PASSWORD.sub(r"\1[password]@", text)
    return _ID.sub("[id]", text)


def set_up(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send all logs of this process to ``stream`` (default: standard error) as JSON lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "alembic"):
        found = logging.getLogger(name)
        found.handlers.clear()
        found.propagate = True
    # its lines hold addresses and paths; `middleware.Observe` writes lines without them
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("alembic").setLevel("WARNING")
    for name in ("botocore", "boto3", "urllib3", "s3transfer"):
        logging.getLogger(name).setLevel("WARNING")
