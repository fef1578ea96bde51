"""Rate limits, refusals, metrics and logs."""
