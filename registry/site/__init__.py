"""What people are shown of a registry: documents for the console and for the static site, and what shows them."""
