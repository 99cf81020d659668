"""What the numbers mean: feature extractors, FID, Inception Score, reconstruction and token metrics, the record."""
