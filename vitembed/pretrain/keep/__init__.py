"""A run is never lost: saving, resuming, full disks, steps that are no number."""
