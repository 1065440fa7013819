"""What holds processes to their limits: cgroups, of either version, or rlimits."""
