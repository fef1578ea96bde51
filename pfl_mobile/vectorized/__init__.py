"""Local training of many simulated devices at once, the traced program stacked over them."""
