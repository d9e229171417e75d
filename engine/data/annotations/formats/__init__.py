"""Formats of annotations, one in each file; file.py says what all of them give."""
