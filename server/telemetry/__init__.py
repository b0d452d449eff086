"""What operators see: metrics, spans, log lines."""
