"""What is left of the interactive shell, which needs a terminal: `pager`, for pydoc."""
