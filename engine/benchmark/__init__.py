"""How fast, and in how much memory; nothing here is imported by a training."""
