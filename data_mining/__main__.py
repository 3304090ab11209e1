"""`python -m data_mining` is the command `data-mining`."""

from data_mining.cli import main

if __name__ == "__main__":
    main()
