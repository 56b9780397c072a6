"""Second moments of layer inputs: summed call by call, stored as a square or as samples, shrunk where samples are
few."""
