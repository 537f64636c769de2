"""What a scan is, and how it reaches a batch."""
