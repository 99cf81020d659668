"""`python -m alitok` is `alitok`."""

from alitok.cli import main

if __name__ == "__main__":
    main()
