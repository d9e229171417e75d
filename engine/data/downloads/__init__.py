"""launch/prepare.py download: the original's data, fetched, verified and unpacked."""
