"""What a federation computes, wherever it runs: a round from names and settings to a merged model."""
