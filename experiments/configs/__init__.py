"""Shipped configurations: short YAML overlays for data, model and trainer."""
