"""What is told of a training while it runs: figures, warnings, and where they are shown."""
