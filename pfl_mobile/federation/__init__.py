"""What a federation is, whoever runs it, as one checked object."""
