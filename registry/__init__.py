"""The ground floor: what a schedule is, and where schedules are kept. Imports no torch."""
