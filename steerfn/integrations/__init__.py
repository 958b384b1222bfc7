"""Other people's systems, each imported only when it is used."""
