"""What annotations and images cost, beside the original's scheme: `python -m engine.data.benchmark`."""
