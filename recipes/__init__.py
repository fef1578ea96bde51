"""Complete worked models."""
