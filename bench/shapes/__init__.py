"""The shapes of load, one file each."""
