"""Parts of ``bench/simulation.py``: the workloads and one file per system."""
