"""Commands of a search that are one noun each, and the options that several have."""
