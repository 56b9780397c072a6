"""Searches for codes: Viterbi for trellis codes, beam search for additive codes."""
