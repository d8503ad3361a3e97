"""The generated pages of the reference; each module writes one of them from the code that it describes."""
