"""What a stage hands to the next: the folder format, digests, published weights in and out."""
