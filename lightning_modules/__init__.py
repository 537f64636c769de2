"""What learns from a batch."""
