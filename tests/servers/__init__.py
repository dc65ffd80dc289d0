"""Real servers for tests: each on loopback or a socket in a private folder, and stopped by its own process."""
