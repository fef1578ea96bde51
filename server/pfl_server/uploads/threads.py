"""Threads for what would hold up the event loop while updates come in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

#: Write what arrives to files.
WRITES = ThreadPoolExecutor(max_workers=8, thread_name_prefix="pfl-write")
#: Look at a finished update, and wait for the disk and the database.
STORES = ThreadPoolExecutor(max_workers=16, thread_name_prefix="pfl-store")


async def run_in(pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
    """What ``work(*arguments)`` gives in a thread of ``pool``."""
    return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)
