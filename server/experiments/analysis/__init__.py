"""What an experiment's events say: from stored lines to a verdict. Runs where the report is asked for, not in a server."""
