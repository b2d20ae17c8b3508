"""Complete named runs: functions that return configurations. A recipe is the documentation of a run."""
