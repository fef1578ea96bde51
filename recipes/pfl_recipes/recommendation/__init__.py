"""Films: how a person will rate them."""
