"""Driving: the angle of the steering wheel, as a driver would choose it."""
