"""The stages of a compression run, one file each; the run folder keeps their results."""
