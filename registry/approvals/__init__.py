"""Moves of tiers that need a second person: the policy that says which, requests, and who speaks for them."""
