"""Lightning callbacks: metrics, pictures, curves, progress, and the artifact at the end of a run."""
