"""Networks that diffusers lacks, one file a family, and the one door to official weights."""
