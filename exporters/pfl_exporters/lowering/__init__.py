"""From traced programs to the files of a runtime: what the targets that need more than a few lines share and do."""
