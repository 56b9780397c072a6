"""Registration of the packed formats with diffusers and transformers."""


def register() -> None:
    """Make diffusers and transformers read compressed folders; safe to call more than once."""
