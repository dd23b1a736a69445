"""One file for each command of the CLI: what it takes, in words, and the calls it makes."""
