"""Synthetic(0.5, 0.5): the standard test of federated strategies."""
