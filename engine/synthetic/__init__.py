"""Data that are drawn: the demo's scenes, and annotations of LXMERT's size."""
