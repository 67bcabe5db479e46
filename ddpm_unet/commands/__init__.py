"""What the command line does, a module a command; `scripts/` start the same functions."""
