"""Training as ordinary programs: forward, loss and backward traced into one graph, and simplified."""
