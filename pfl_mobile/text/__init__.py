"""Text on the device: tokenizer, encoder and vocabulary slots."""
