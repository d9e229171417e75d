"""launch/prepare.py inspect: what is in data of one's own, and what a training would make of it."""
