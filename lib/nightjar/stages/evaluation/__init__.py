"""What `evaluate` is made of: lists and ratings held against what happened, baselines, means."""
