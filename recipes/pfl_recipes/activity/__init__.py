"""Activity recognition: what a person does, from the accelerometer of their phone."""
