"""What a job is worth: its speed, its labels under other settings, its order of work."""
