"""What operators see: figures, status, budget, queries."""
