"""Metrics of all processes, health, and traces."""
