"""Feature extractors, FID, Inception Score, reconstruction and token metrics, and the evaluation record."""
