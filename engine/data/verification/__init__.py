"""launch/prepare.py verify: a whole data set, checked."""
