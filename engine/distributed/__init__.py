"""Processes: ranks, their devices and launchers, what they share, and how they end."""
