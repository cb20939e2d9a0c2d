"""Products whose scenes lie in many files: what their names and metadata say."""
