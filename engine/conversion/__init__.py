"""launch/convert.py: weights from one format to another."""
