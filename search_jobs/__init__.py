"""Offline search jobs: find schedules, show what they are worth, publish them."""
