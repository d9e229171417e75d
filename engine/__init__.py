"""The CLIP-ViL training engine."""
