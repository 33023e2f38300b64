"""Storage: the MegaContext Tree on disk and the library that finds, forks and forgets trees. Knows no GPU."""
