"""Rounds: check-in, selection, merge, clean-up, and what admins do with them."""
