"""What a training run measures: metrics.jsonl and the experiment trackers beside it."""
