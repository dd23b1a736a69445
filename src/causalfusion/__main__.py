"""`python -m causalfusion`."""

from causalfusion.cli import main

if __name__ == "__main__":
    main()
