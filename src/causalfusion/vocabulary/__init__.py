"""Reading command lines: a command's options, words of other tools for them, and the files beneath them."""
