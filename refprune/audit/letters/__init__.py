"""One module or two for each letter of SPEC: its claims with their witnesses. A new letter is one more file here."""
