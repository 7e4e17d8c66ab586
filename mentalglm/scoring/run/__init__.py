"""A run as its folder holds it: who may write, what is done, and the files that analysts open."""
