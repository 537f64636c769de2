"""Metrics: a functional form, and a class form with a reduce rule where it accumulates."""
