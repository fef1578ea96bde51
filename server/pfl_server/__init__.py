"""The aggregator: rounds of federated training over HTTP, with clipping, differential privacy and its accounting."""
