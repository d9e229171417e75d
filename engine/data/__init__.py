"""Annotations and images to batches."""
