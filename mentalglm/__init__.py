"""Distributed batch scoring for explainable mental-health analysis of Chinese social media."""
