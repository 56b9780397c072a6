"""Calls of a denoiser as data: recorded along trajectories, kept on disk as a dataset, replayed block by block."""
