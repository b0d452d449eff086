"""Calls to webhooks: where they may lead, how they are signed, how often they are tried."""
