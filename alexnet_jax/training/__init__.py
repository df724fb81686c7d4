"""Everything that talks to devices, and the loop that drives it."""
