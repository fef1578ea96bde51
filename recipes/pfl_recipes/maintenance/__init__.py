"""Predictive maintenance: how long an engine of a fleet will last."""
