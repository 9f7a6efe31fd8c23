"""Other schedulers, measured by the same shapes in the same run."""
