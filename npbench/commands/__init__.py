"""Commands that are not the trainer's, one a file: `run(args)`."""
