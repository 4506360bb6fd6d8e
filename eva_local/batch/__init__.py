"""Many rows from a file to answers in a file, with nothing lost where it stops on the way."""
