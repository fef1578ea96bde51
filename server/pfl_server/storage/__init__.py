"""What the aggregator keeps: rows in a database, tensors in a blob store."""
