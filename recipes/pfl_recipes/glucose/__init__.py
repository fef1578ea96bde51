"""Glucose: a patient's reading in half an hour."""
