"""The dashboard: pages that the server renders."""
