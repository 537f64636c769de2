"""Shipped searches: a space of configurations, and what is to be best."""
