"""What a device does in a round, as data: the plan, its checks, what it sends, how it reads in words."""
