"""What runs cost and how fast they are: FLOPs, memory, benchmarks."""
