"""`python -m vqcompress`, the command line."""

from vqcompress.cli.main import main

if __name__ == "__main__":
    main(prog_name="vqcompress")
