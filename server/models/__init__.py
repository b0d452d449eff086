"""The models of a server: which there are, and which of them are in memory."""
