"""What computes: generators, trainers and embedders, each behind a Protocol of `base`."""
