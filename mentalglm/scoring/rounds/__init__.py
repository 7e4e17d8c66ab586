"""What comes after a run is over: failed rows scored again, explanations added; `data/` holds each row as it is now."""
