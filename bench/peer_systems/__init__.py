"""What ``bench/peers.py`` compares: the models, each system that trains them, and the process that each runs in."""
