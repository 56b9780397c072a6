"""Posters: 64×64 scenes of textured, outlined and shaded objects that may overlap, some with a label of two letters."""
