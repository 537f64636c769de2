"""Networks in pure torch: no Lightning, no files."""
