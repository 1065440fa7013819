"""What other programs are told of a fleet, in their own formats."""
