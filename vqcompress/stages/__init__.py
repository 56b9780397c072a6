"""The stages of a compression run, one file each; what they make, a run folder keeps."""
