"""A run's folder: its lock, its log, its checkpoints, and where it goes on."""
