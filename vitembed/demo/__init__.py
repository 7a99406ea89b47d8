"""A small real data set and the tour that make demo gives."""
