"""The studies of what a network sees: a module a command, and the networks that all of them take."""
