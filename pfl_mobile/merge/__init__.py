"""How the aggregator takes a mean of updates: rows that stream, rules, robust and private ones."""
