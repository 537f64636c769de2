"""One file per command: arguments that parse without heavy imports, and a handler that does the work."""
