"""The dashboard: pages that the server renders, at ``/``.

``mount`` puts them into an app. They work without scripts; a few lines of JavaScript refresh the overview.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI


def mount(app: FastAPI) -> None:
    """Add the pages to ``app``, whose ``state.services`` they use."""
    from pfl_server.dashboard import forms, routes

    app.include_router(routes.router)
    app.include_router(forms.router)
