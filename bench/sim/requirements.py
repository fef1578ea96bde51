"""What each simulator needs in an environment of its own."""

from __future__ import annotations

import importlib.metadata

#: Besides PyTorch, which is of the same version for all systems.
_REQUIREMENTS = {
    "pfl_research": ("pfl>=0.6,<0.7",),
    "flower": ("flwr[simulation]>=1.41,<1.43",),
}


def wanted(system: str) -> tuple[str, ...]:
    """What pip is to install for ``system``: nothing for ours and the plain loop, which run where we are."""
    if system not in _REQUIREMENTS:
        return ()
    torch = importlib.metadata.version("torch").split("+")[0]
    return (*_REQUIREMENTS[system], f"torch=={torch}", "numpy>=1.26,<3")
