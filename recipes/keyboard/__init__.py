"""The keyboard: next-word prediction that learns its user's words."""
