"""What can be asked for: problems, and the registered op of each kind."""
