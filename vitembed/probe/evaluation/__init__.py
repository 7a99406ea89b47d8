"""What is to be known about a probe before anyone relies on it."""
