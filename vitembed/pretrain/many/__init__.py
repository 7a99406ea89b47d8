"""Several processes that learn as one: started, agreed, gathered."""
