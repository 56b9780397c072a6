"""How the embedded models were trained; left out of the wheel, so run it from a clone."""
