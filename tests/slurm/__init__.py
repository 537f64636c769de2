"""A real SLURM of one node on loopback, and studies that go through it."""
