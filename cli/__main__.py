"""`python -m vqcompress.cli`, for launchers such as `torchrun` that start modules."""

from vqcompress.cli.main import main

if __name__ == "__main__":
    main(prog_name="vqcompress")
