"""Whether the engine works on every version of its libraries that setup.py allows: `make test-versions`."""
