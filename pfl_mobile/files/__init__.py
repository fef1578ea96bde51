"""Files: atomic writes, plain JSON, tensors, sealed states."""
