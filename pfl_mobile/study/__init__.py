"""Studies: does personalization pay, for whom, and with which strategy."""
