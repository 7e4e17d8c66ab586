"""The train job: records, the loop on Ray Train, checkpoints, validation, export; GLM formats; the demo model."""
