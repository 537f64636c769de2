"""Side by side with peers; never part of the test suite."""
