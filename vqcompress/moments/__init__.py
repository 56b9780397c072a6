"""Second moments of layer inputs: accumulated over calls, stored as a square or as samples, shrunk where samples are few."""
