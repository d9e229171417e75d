"""Flags and recipes, read and checked before anything heavy is imported."""
