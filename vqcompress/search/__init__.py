"""Searches for the best code: Viterbi over trellises, beam search over additive codebooks."""
