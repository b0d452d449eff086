"""What each tier means now, and how a server follows the registry that says so."""
