"""The whole encoder and a head, trained on labelled images."""
