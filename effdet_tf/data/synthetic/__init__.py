"""Synthetic phase-contrast cells: everything can be tried without a download."""
