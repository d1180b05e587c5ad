"""Every diagonal model for an equal time of a processor, on the same tasks, in one table."""
