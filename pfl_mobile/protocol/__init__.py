"""What devices and the aggregator say to each other; used by both, so it needs neither."""
