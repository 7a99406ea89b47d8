"""Going on from a trained model without losing it."""
