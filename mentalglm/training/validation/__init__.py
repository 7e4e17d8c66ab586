"""Checkpoints held against validation records: measured beside the training, noted in files of ours, and chosen by."""
