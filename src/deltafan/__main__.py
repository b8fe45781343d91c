"""`python -m deltafan`."""

from deltafan.cli import main

if __name__ == "__main__":
    main()
