"""Trainings that are ended in every way at random moments, and go on as if nothing had happened."""
