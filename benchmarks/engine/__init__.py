"""How fast the engine is against others, as ratios measured side by side: bare times mean nothing on a shared machine."""
