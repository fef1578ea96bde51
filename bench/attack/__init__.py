"""Attacks on federated rounds, and how merge rules bear them."""
