"""The data sets themselves, each read from where a package has installed it, or from its public layout."""
