"""The words of the command line: which options a command has, what people type instead, what lies beneath."""
