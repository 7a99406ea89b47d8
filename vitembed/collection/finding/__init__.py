"""Search as people use it: filters, backgrounds, batches, duplicates, maps, and why two images match."""
