"""A folder that transformers loads: the code that goes into it, and who writes it."""
