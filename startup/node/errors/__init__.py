"""What agents report: stored, counted, and acted upon."""
