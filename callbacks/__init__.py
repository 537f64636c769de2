"""What watches a run: predictions, provenance, logs."""
