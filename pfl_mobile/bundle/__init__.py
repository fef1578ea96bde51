"""The artifact a phone gets."""
