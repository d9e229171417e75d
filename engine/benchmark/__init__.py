"""A training step of a whole model, part by part, beside the original's way of doing it."""
