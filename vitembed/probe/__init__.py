"""What vectors are worth: k-NN and linear probes on frozen embeddings."""
