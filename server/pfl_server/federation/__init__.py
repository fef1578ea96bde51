"""What the federation of a database is: configuration, restarts, run time."""
