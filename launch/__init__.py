"""Command-line programs. Each parses, builds, and calls the engine."""
