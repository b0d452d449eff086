"""What a fleet of servers asks of what it shares: the registry's store, the metrics, the audit trail. See docs/scale.md."""
